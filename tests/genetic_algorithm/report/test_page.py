from __future__ import annotations

import html
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genetic_algorithm import SearchConfig
from genetic_algorithm.report import compare, plot_progress
from genetic_algorithm.report.page import RELOAD_S, render
from genetic_algorithm.report.words import Measure, plural
from tests.conftest import long_one
from tests.genetic_algorithm.report.runs import CONFIG, Deep, Page, Told, WithDivergence

DRAWINGS = ["convergence", "layer-counts", "layers", "interactions", "subjects", "rivals"]
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    r"$\frac{1}{",
    "a\x00b\ud800c" + "x" * 500,
]


@pytest.fixture(scope="module")
def told() -> Told:
    return Told().finish()


@pytest.fixture(scope="module")
def page(told: Told) -> str:
    return told.page()


def drawings(page: str) -> dict[str | None, str]:
    """Alternative text of each drawing, by the beginning of its ids."""
    found = re.findall(
        r'<svg [^>]*role="img" aria-label="([^"]*)">\s*(?:<defs>.*?</defs>\s*)?<g id="([a-z-]+)-', page, re.S
    )
    return {name: html.unescape(alt) for alt, name in found}


def test_it_is_well_formed_and_loads_nothing(page: str) -> None:
    found = Page(page)
    assert not found.every("script")
    loaded = [v for _, of in found.tags for k, v in of.items() if k in ("src", "href", "xlink:href", "srcset", "data")]
    assert loaded
    assert not [link for link in loaded if not (link or "").startswith(("#", "data:"))]
    style = re.findall(r"url\(([^)]*)\)|(@import)", page)
    assert not [of for of, other in style if other or not of.startswith("#")]
    assert "http" not in re.sub(r"<code>.*?</code>", "", page)


def test_ids_are_unique_and_what_refers_to_them_finds_them(page: str) -> None:
    found = Page(page)
    ids = [of["id"] for _, of in found.tags if "id" in of]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]*)"', page) + re.findall(r"url\(#([^)]*)\)", page)
    assert wanted
    assert set(wanted) <= set(ids)


def test_every_drawing_tells_its_finding_in_words_and_figures(page: str) -> None:
    assert len(Page(page).every("svg")) == len(DRAWINGS)
    alts = drawings(page)
    assert list(alts) == DRAWINGS
    for alt in alts.values():
        assert len(alt.split()) > 8
        assert re.search(r"\d", alt)
        assert not re.match(r"(a|the) (plot|figure|drawing)", alt, re.I)


def test_it_tells_what_the_result_tells(told: Told, page: str) -> None:
    document, text = told.document(), Page(page).text.replace("\xa0", " ")
    assert document["conclusion"].replace(" +- ", " ± ") in text
    for entry in document["final_results"]:
        assert f"{entry['accuracy']:.3f} ± {entry['standard_error']:.3f}" in text
    best = document["final_results"][0]
    assert f"{best['holdout_accuracy']:.3f} ± {best['holdout_standard_error']:.3f}" in text
    assert f"hold-out, {best['holdout_questions']} questions" in text
    for one in document["comparisons"]:
        assert f"{one['difference']:+.3f} ± {one['standard_error']:.3f}".replace("-", "\N{MINUS SIGN}") in text
    for row in document["per_subject"]["subjects"]:
        gain = row["accuracy"] - row["base_accuracy"]
        assert f"{gain:+.3f} ± {row['gain_standard_error']:.3f}".replace("-", "\N{MINUS SIGN}") in text
    for stage, usage in document["usage"].items():
        assert f"{usage['question_evaluations']:,}" in text, stage
    assert "python -m genetic_algorithm.run_search --pair tiny" in text


def test_counts_on_it_reconcile(told: Told, page: str) -> None:
    text, known = Page(page).text, told.search.ledger.known
    assert f"{len(known)} sets, the base among them, were asked" in text
    assert f"of all {len(known)} asked" in text
    first, *more = (len(told.search.ledger.parts[rung]) for rung in told.search.ledger.questions.rungs)
    ladder = [int(number) for number in re.findall(r"\d+", text.partition("A set first answers")[2].partition(".")[0])]
    assert ladder == [first, *more]
    ranking = Page(page.partition("<h2>What was found</h2>")[2].partition("</section>")[0]).text
    assert {entry["questions"] for entry in told.document()["final_results"]} <= {first, *more}
    assert "rung" not in ranking


def rows(page: str, section: str) -> list[list[str]]:
    """Cells of the first table of a section, its head as well."""
    table = page.partition(f"<h2>{section}</h2>")[2].partition("</table>")[0]
    return [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)]
        for row in table.split("<tr>")[1:]
    ]


@pytest.mark.usefixtures("no_drawings")
def test_the_ranking_has_no_empty_column_and_the_donor_no_score_that_chose() -> None:
    told = Told(evaluator=WithDivergence(0, per_subject=60)).finish()
    head, *ranked = rows(told.page(), "What was found")
    assert all(set(column) != {"\N{EN DASH}"} for column in zip(*ranked, strict=True))
    donor = dict(zip(head, ranked[-1], strict=True))
    assert donor["rank"] == "donor"
    assert donor["accuracy, questions that chose"] == donor["how many"] == "\N{EN DASH}"
    assert donor["accuracy, hold-out"].startswith("0.")


def test_the_base_has_the_same_p_value_in_both_tables(page: str) -> None:
    head, *ranked = rows(page, "What was found")
    (base,) = (dict(zip(head, row, strict=True)) for row in ranked if row[0] == "base")
    compared, *rivals = rows(page, "The winner beside its rivals")
    (against,) = (dict(zip(compared, row, strict=True)) for row in rivals if row[0].endswith("(base)"))
    assert base["p against the best"] == against["p"] == "< 0.001"


def test_every_stage_is_named_however_short(told: Told) -> None:
    documents = told.documents(is_over=True)
    assert documents.data is not None
    names = [("first", 0), ("second", 500), ("third", 510), ("held out", told.done - 1)]
    documents.data["track"]["stages"] = [{"stage": name, "question_evaluations": at} for name, at in names]
    drawing = plot_progress.convergence(documents.data, documents.result, Measure.of("accuracy", False))
    found = re.findall(r'<text [^>]*?\by="([-\d.]+)"[^>]*>(first|second|third|held out)</text>', drawing)
    down = {name: float(y) for y, name in found}
    assert down.keys() == dict(names).keys()
    assert down["first"] == down["second"] == down["held out"] > down["third"]  # this one above, beside the second


def test_a_less_than_sign_in_it_is_written_as_html_wants_it(page: str) -> None:
    assert "&lt; 0.001" in page
    assert "&amp;lt;" not in page
    assert not re.findall(r"<(?![a-zA-Z/!]).{20}", page)


@pytest.mark.parametrize(
    ("value", "told_"), [(0, "0 hours"), (1, "1 hour"), (1.0, "1 hour"), (0.5, "0.5 hours"), (2304, "2,304 hours")]
)
def test_one_is_singular(value: float, told_: str) -> None:
    assert plural(value, "hour") == told_


def test_alternative_texts_tell_what_the_data_tell(told: Told, page: str) -> None:
    documents, alts = told.documents(is_over=True), drawings(page)
    assert documents.data is not None
    assert documents.result is not None
    effects, frequency = documents.data["effects"], documents.data["frequency"]
    clear = [
        i
        for i, (m, d) in enumerate(zip(effects["singles"]["mean"], effects["singles"]["deviation"], strict=True))
        if m is not None and m > 1.96 * d
    ]
    best = max(clear, key=lambda i: effects["singles"]["mean"][i])
    assert re.match(rf"Alone, layers? {best} \(\+", alts["layers"])
    most = int(np.argmax(frequency["in_best"]))
    assert f"{most} in {frequency['in_best'][most]}" in alts["layers"]
    assert f"{documents.result['final_results'][0]['holdout_accuracy']:.3f}" in alts["convergence"]
    assert f"{documents.data['noise']['bound']:.3f}" in alts["convergence"]


def test_names_from_outside_are_only_text(tmp_path: Path) -> None:
    told = Told(names=HOSTILE).finish()
    folder = tmp_path / "it's $HOME <b>&amp; more"
    page = told.page(folder=folder, command=["run_search", *HOSTILE])
    found = Page(page)
    assert not found.every("script")
    assert not found.every("img")
    assert len(found.every("svg")) == len(DRAWINGS)
    assert not [of for _, of in found.tags if any(k.startswith("on") for k in of)]
    assert str(folder) in found.text
    page.encode()  # no half of a surrogate pair
    assert "\x00" not in page


@pytest.mark.usefixtures("no_drawings")
def test_the_command_that_makes_the_checkpoint_survives_any_path(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $HOME  run"
    (code,) = re.findall(r"<code>(cd model_preparation.*?)</code>", Told().finish().page(folder=folder), re.S)
    lines = [shlex.split(line) for line in html.unescape(code).replace("\\\n", "").splitlines()]
    assert lines[1][lines[1].index("--from_result") + 1] == str(folder / "search_result_20260102_030405.json")


@pytest.mark.usefixtures("no_drawings")
def test_an_evaluator_of_ones_own_has_no_checkpoint(told: Told) -> None:
    run = {"evaluator": {"factory": "my.module:make"}, "search": vars(CONFIG)}
    page = told.page(run=run)
    assert "create_replaced_model_checkpoint" not in page
    assert "no pair of models to make a checkpoint of" in page
    assert "my.module:make" in page


def test_a_search_that_goes_on_says_so_and_loads_itself_again(page: str) -> None:
    told = Told()
    assert told.step()
    assert told.step()
    early = told.page(is_over=False)
    assert f'http-equiv="refresh" content="{RELOAD_S}"' in early
    assert "This search is not over" in early
    assert "create_replaced_model_checkpoint" not in early
    assert "by which it was chosen, so they may flatter it" in Page(early).text
    assert "http-equiv" not in page
    assert "This search is not over" not in page


def test_before_anything_is_ranked_there_is_a_page(tmp_path: Path) -> None:
    told = Told(broken=[str(layers) for layers in Told().search.space] + ["none"])
    documents = told.documents(is_over=False)
    page = render(documents)
    Page(page)
    assert "No layer set is ranked yet" in page
    Page(compare.render([documents, told.documents(is_over=False, folder=Path("/runs/other"))]))


def test_divergences_are_named_and_lower_is_better() -> None:
    told = Told(replace(CONFIG, goal="kl"), WithDivergence(0, per_subject=60)).finish()
    page = told.page()
    text = Page(page).text
    assert "least divergence from the donor" in text
    best = told.document()["final_results"][0]
    assert f"{-best['value']:.3f} ± {best['value_error']:.3f}" in text
    assert "root nats" in drawings(page)["layers"]


def test_a_mixture_is_called_weighted() -> None:
    told = Told(weights=np.repeat([1.0, 0.2, 1.0, 3.0], 60)).finish()
    text = Page(told.page()).text
    best = told.document()["final_results"][0]
    assert "highest weighted accuracy" in text
    assert f"{best['value']:.3f} ± {best['value_error']:.3f}" in text


def test_without_a_hold_out_no_score_is_called_one() -> None:
    page = Told(replace(CONFIG, holdout=0.0)).finish().page()
    text = Page(page).text
    assert "none of them held out" in text
    assert "on the hold-out" not in "".join(drawings(page).values())
    assert "of the hold-out" not in text
    assert "that also chose" in text


@pytest.mark.usefixtures("no_drawings")
def test_failed_sets_are_named() -> None:
    text = Page(Told(broken=["3", "2+9"]).finish().page()).text
    assert re.search(r"(1|2) layer sets? could not be evaluated and (was|were) left out: 3", text)


@pytest.mark.parametrize("layers", [pytest.param(32, marks=long_one), 80])
def test_deep_models_fit(layers: int) -> None:
    config = replace(CONFIG, max_passes=None, max_questions=25_000)
    told = Told(config, Deep(layers)).finish()
    page = told.page()
    Page(page)
    assert len(page) < 1_500_000
    assert f"out of {layers} were allowed" in page


@pytest.mark.parametrize("layer_counts", [(1, 1), (0, 2), (4, 4)])
def test_few_layer_counts(layer_counts: tuple[int, int]) -> None:
    low, high = layer_counts
    told = Told(replace(CONFIG, min_layers=low, max_layers=high)).finish()
    Page(told.page())


@pytest.mark.usefixtures("no_drawings")
def test_constraints_are_told() -> None:
    config = SearchConfig(population=6, generations=2, fast_limit=10, full_limit=40, must_include=(2,), forbid=(0, 5))
    text = Page(Told(config).finish().page()).text
    assert "Every set holds 2." in text
    assert "No set holds 0, 5." in text


def test_without_matplotlib_the_words_and_tables_stay(told: Told, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = told.page()
    assert not Page(without).every("svg")
    assert without.count("matplotlib is not installed here") == len(DRAWINGS)
    assert len(Page(without).every("table")) == len(Page(page).every("table"))


def test_a_run_of_before_there_were_reports_shows_its_result(told: Told) -> None:
    documents = told.documents(is_over=True)
    old = replace(documents, data=None)
    for row in old.result["per_subject"]["subjects"] if old.result else []:
        del row["gain_interval"], row["gain_standard_error"]
    page = render(old)
    Page(page)
    assert told.document()["conclusion"].split(" +- ")[0] in page


def test_runs_compared(told: Told) -> None:
    other = Told(replace(CONFIG, seed=3, population=10)).finish()
    third = Told()
    third.step()
    runs = [
        told.documents(is_over=True, folder=Path("/runs/a")),
        other.documents(is_over=True, folder=Path("/runs/b<i>")),
        third.documents(is_over=False, folder=Path("/elsewhere/a")),
    ]
    page = compare.render(runs)
    found = Page(page)
    assert len(found.every("svg")) == 1
    (alt,) = (of["aria-label"] or "" for of in found.every("svg"))
    for run in runs:
        assert f"{run.paths.folder.parent.name}/{run.paths.folder.name} ends after" in alt
        assert run.result is not None
        assert "+".join(map(str, run.result["final_results"][0]["layers"])) in found.text
    differing = found.text.split("Settings that differ")[1]
    assert re.search(r"search\.seed 0 3 0 ", differing)
    assert "search.population" in differing
    assert "search.goal" not in differing
    assert not found.every("i")
    assert "python -m genetic_algorithm.report RUN RUN... makes this page anew" in found.text
