from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import ModelError
from models.pairs import PAIRS, HubModel, Source, default_pair, get_pair, make_pair, named_pair

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two folders in the working folder, with awkward names."""
    monkeypatch.chdir(tmp_path)
    for name in ("my base: the 2nd", "donor@home"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "my base: the 2nd"), str(tmp_path / "donor@home")


def refused(function, *arguments: object) -> str:
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_zoo():
    assert list(PAIRS) == ["tiny", "llamba-8b", "llamba-8b-aligned", "llamba-3b", "llamba-1b"]
    for name, pair in PAIRS.items():
        assert pair.name == name
        assert pair.is_local == (name == "tiny")
        assert pair.tasks
        assert pair.description
        assert pair.license
        assert pair.size_gb
    ids = {name: (pair.base.name, pair.donor.name) for name, pair in PAIRS.items()}
    assert ids["tiny"] == ("tiny/base", "tiny/donor")
    assert ids["llamba-8b"] == ("goombalab/Llamba-8B-untied-unaligned", "LLM-Research/Meta-Llama-3.1-8B-Instruct")
    assert ids["llamba-8b-aligned"] == ("cartesia-ai/Llamba-8B-untied", "LLM-Research/Meta-Llama-3.1-8B-Instruct")
    assert ids["llamba-1b"] == ("cartesia-ai/Llamba-1B", "LLM-Research/Llama-3.2-1B-Instruct")
    gated = PAIRS["llamba-3b"].donor.hubs[1]
    assert gated == HubModel(hub="huggingface", id="meta-llama/Llama-3.2-3B-Instruct")
    hub_ids = [(pair.base.hub_id, pair.donor.hub_id) for pair in PAIRS.values()]
    assert hub_ids[:2] == [(None, None), (ids["llamba-8b"][0], "meta-llama/Llama-3.1-8B-Instruct")]
    assert [pair.license for pair in PAIRS.values()] == ["mit", "llama3.1", "llama3.1", "llama3.2", "llama3.2"]


def test_the_first_set_of_each_size_is_the_best_that_was_published():
    with open(ROOT / "benchmarks" / "data" / "llamba8b_mmlu_limit50.csv", encoding="utf-8") as file:
        published = {tuple(map(int, row["layers"].split("+"))): float(row["mmlu_acc"]) for row in csv.DictReader(file)}
    known = get_pair("llamba-8b").known_best()
    sizes = [len(best.layers) for best in known]
    assert sizes == sorted(sizes)
    for size in {1, 2, 3, 4}:
        of_size = [best for best in known if len(best.layers) == size]
        assert of_size[0].score == max(best.score for best in of_size if best.score is not None)
        if size < 4:
            best = max((layers for layers in published if len(layers) == size), key=published.__getitem__)
            assert (of_size[0].layers, of_size[0].score) == (best, published[best])
    for best in known:
        assert best.score == published.get(best.layers, best.score)


def test_the_best_sets_of_a_pair_with_a_landscape_are_those_of_all(tmp_path):
    landscape = tmp_path / "landscape.json"
    sets = {"none": 9, "0": 5, "1": 7, "0+1": 8, "0+10": 8}
    landscape.write_text(json.dumps({"questions": 10, "sets": sets}))
    measured = replace(get_pair("tiny"), landscape=landscape).known_best()
    assert [b.layers for b in measured] == [(1,), (0, 1)]
    assert "0.7000 on all search questions" in measured[0].description
    assert [b.layers for b in get_pair("tiny").known_best()] == [(0,), (0, 2), (0, 2, 4), (0, 2, 4, 5)]
    assert get_pair("llamba-1b").known_best() == ()


def test_where_none_is_named_the_gpu_decides():
    assert [default_pair(size).name for size in (0, 23_999_999_999, 24_000_000_000, 10**12)] == [
        "tiny",
        "tiny",
        "llamba-8b",
        "llamba-8b",
    ]


@pytest.mark.parametrize(
    ("text", "hubs"),
    [
        ("org/name", [("huggingface", "org/name", None), ("modelscope", "org/name", None)]),
        ("hf:org/name", [("huggingface", "org/name", None)]),
        ("ms:o-r.g/n_a.m-e@refs/pr/1", [("modelscope", "o-r.g/n_a.m-e", "refs/pr/1")]),
        ("org/name@v1.0", [("huggingface", "org/name", "v1.0"), ("modelscope", "org/name", "v1.0")]),
    ],
)
def test_hub_ids(text, hubs):
    source = Source.parse(text)
    assert [(model.hub, model.id, model.revision) for model in source.hubs] == hubs
    assert source.folder is None
    assert source.name == hubs[0][1] + (f"@{hubs[0][2]}" if hubs[0][2] else "")
    assert source.hub_id == hubs[0][1]
    assert source.spelling == text


def test_folders_are_known_by_their_absolute_path(folders, tmp_path, monkeypatch):
    source = Source.parse("my base: the 2nd")
    assert source == Source(spelling=folders[0], folder=folders[0])
    assert source.name == folders[0]
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert Source.parse("org/name").folder == str(tmp_path / "org" / "name")
    assert Source.parse("hf:org/name").folder is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Source.parse("~/donor@home").folder == folders[1]


def test_a_folder_called_as_a_model_of_the_zoo_is_not_mistaken_for_it(folders, tmp_path):
    (tmp_path / "llamba-8b" / "base").mkdir(parents=True)
    line = refused(Source.parse, "llamba-8b/base")
    assert line.startswith("'llamba-8b/base' is the base of the pair llamba-8b and also a folder here; ")
    assert "write ./llamba-8b/base" in line
    assert Source.parse("./llamba-8b/base").folder == str(tmp_path / "llamba-8b" / "base")
    assert Source.parse("llamba-8b/donor") == get_pair("llamba-8b").donor
    mixed = named_pair("llamba-8b", None, "ms:org/llama")  # the zoo is named, so its base is meant
    assert mixed is not None
    assert mixed.base == get_pair("llamba-8b").base


@pytest.mark.parametrize("text", ["", "nowhere", "a/b/c", "hf:", "hf:name", "gl:org/name", "../x", "org/", "org/name@"])
def test_what_is_neither_folder_nor_hub_id_is_refused(folders, text):
    assert "is neither a folder here nor a hub id; give a folder, org/name" in refused(Source.parse, text)


def test_a_file_is_no_model(folders, tmp_path):
    (tmp_path / "config.json").touch()
    assert refused(Source.parse, "config.json") == "'config.json' is a file; give the folder it lies in"


def test_an_unknown_pair_names_the_nearest():
    assert "no pair is called 'lamba8b'; did you mean 'llamba-8b'?" in refused(get_pair, "lamba8b")
    known = "known: tiny, llamba-8b, llamba-8b-aligned, llamba-3b, llamba-1b, BASE:DONOR, or FILE.yaml"
    for name in ("", "hf:org/name"):
        assert known in refused(get_pair, name)


@pytest.mark.parametrize("base", ["FOLDER", "org/base", "hf:org/base@v1", "tiny/base"])
@pytest.mark.parametrize("donor", ["FOLDER", "ms:org/donor", "org/donor@main", "llamba-8b-aligned/donor"])
def test_the_name_of_any_two_models_is_their_pair_in_any_folder(folders, base, donor, monkeypatch):
    base, donor = (text.replace("FOLDER", folder) for text, folder in zip((base, donor), folders, strict=True))
    pair = make_pair(base, donor)
    assert (pair.base, pair.donor) == (Source.parse(base), Source.parse(donor))
    monkeypatch.chdir("/")
    assert get_pair(pair.name) == pair


def test_two_folders_are_a_pair(folders):
    pair = get_pair("my base: the 2nd:donor@home")
    assert pair.name == ":".join(folders)
    assert (pair.base.folder, pair.donor.folder) == folders
    assert pair.is_local
    assert (pair.tasks, pair.preset, pair.license, pair.known_best()) == (("mmlu",), "quick", None, ())
    assert refused(get_pair, f"{folders[1]}:nowhere").startswith("the donor 'nowhere' is neither a folder here")
    assert refused(make_pair, "nowhere", folders[1]).startswith("the base 'nowhere' is neither")


def test_a_pair_takes_another_base_or_donor_and_keeps_its_questions(folders):
    mixed = named_pair("tiny", "my base: the 2nd", None)
    assert mixed is not None
    assert mixed.name == f"{folders[0]}:tiny/donor"
    assert (mixed.base.folder, mixed.donor) == (folders[0], get_pair("tiny").donor)
    assert (mixed.tasks, mixed.task_dir, mixed.preset) == (("tiny",), get_pair("tiny").task_dir, "tiny")
    assert (mixed.landscape, mixed.best_sets, mixed.license) == (None, (), None)  # of other weights
    other = named_pair("llamba-8b", None, "ms:org/llama")
    assert other is not None
    assert (other.base, other.donor.name, other.license) == (get_pair("llamba-8b").base, "org/llama", None)


def test_a_licence_goes_with_the_donor_wherever_it_is_from(folders):
    assert make_pair(folders[0], "meta-llama/Llama-3.1-8B-Instruct").license == "llama3.1"
    assert make_pair("llamba-1b/base", "llamba-1b/donor") is get_pair("llamba-1b")


def test_which_options_make_a_pair(folders):
    assert named_pair(None, None, None) is None
    assert named_pair("", "", "") is None
    assert named_pair("tiny", None, None) is get_pair("tiny")
    assert named_pair(None, *folders) == make_pair(*folders)
    assert refused(named_pair, None, "org/x", None) == (
        "the base org/x has no donor; give --donor MODEL, or --pair NAME for that pair's"
    )
    assert "the donor org/x has no base; give --base MODEL" in refused(named_pair, None, None, "org/x")
    assert "leave one of the three out" in refused(named_pair, "tiny", *folders)


def test_the_zoo_loads_no_torch():
    program = "import sys, models.pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
