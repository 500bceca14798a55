"""What the scripts start, with which arguments, from any folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from genetic_algorithm.config import PRESETS
from models.pairs import make_pair

from .conftest import ROOT, Run


def modules_run(tmp_path: Path) -> list[list[str]]:
    """Module and arguments of each call that the recorder saw."""
    log = tmp_path / "modules run"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize(
    ("script", "preset"),
    [
        ("quick_test_real.sh", "quick"),
        ("run_full_search_fast.sh", "full"),
    ],
)
def test_searches_have_their_presets_and_pass_arguments_on(
    script: str, preset: str, clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    given = ["--seed", "7", "--output-dir", "some where", "--generations", "3"]
    done = run(f"./{script}", *given, cwd=clone / "scripts", PYTHON=str(recorder), PAIR="tiny")
    assert done.returncode == 0, done.stderr
    expected = ["--pair", "tiny", "--preset", preset, *given]
    assert modules_run(tmp_path) == [["genetic_algorithm.run_search", *expected]]


def test_the_presets_of_the_scripts_are_what_they_say() -> None:
    told = ("population", "generations", "fast_limit", "full_limit", "max_passes")
    quick, full = (PRESETS[name]() for name in ("quick", "full"))
    assert [getattr(quick, name) for name in told] == [20, 15, 10, 50, 6]
    assert [getattr(full, name) for name in told] == [40, 20, 20, None, 16]


@pytest.mark.parametrize(
    ("file", "environment", "added"),
    [
        ("seed: 3", {}, ["--pair", "*", "--preset", "quick"]),
        ("pair: llamba-1b", {}, ["--pair", "llamba-1b", "--preset", "quick"]),
        ("{pair: llamba-1b, preset: full}", {}, ["--pair", "llamba-1b"]),
        ("{base: a/b, donor: c/d, gpu: 1}", {"PAIR": "tiny"}, ["--pair", "tiny", "--preset", "quick"]),
        ("{pair: tiny, gpu: 1}", {"GPUS": "0"}, ["--pair", "tiny", "--gpu", "0", "--preset", "quick"]),
        ("{evaluator: 'a:b'}", {"GPUS": "0", "PAIR": "tiny"}, ["--preset", "quick"]),
    ],
)
def test_settings_in_a_file_stand_behind_the_environment_and_before_the_preset(
    file: str, environment: dict[str, str], added: list[str], clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    (tmp_path / "my settings").write_text(file)
    given = ["--config", "my settings", "--generations", "3"]
    done = run(clone / "scripts" / "quick_test_real.sh", *given, PYTHON=str(recorder), **environment)
    assert done.returncode == 0, done.stderr
    (search,) = modules_run(tmp_path)
    found = search[1:]
    if "*" in added:  # by the GPU of this machine
        added = [found[1] if word == "*" else word for word in added]
    assert found == [*added, *given]


def test_settings_that_cannot_be_end_the_script_with_one_line(
    clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings").write_text("seeds: 3")
    done = run(clone / "scripts" / "quick_test_real.sh", "--config=settings", PYTHON=str(recorder))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "settings, line 1: there is no setting 'seeds'; the nearest is 'seed'" in done.stderr
    assert not modules_run(tmp_path)


def test_an_evaluator_of_ones_own_needs_neither_pair_nor_device(
    clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    script = clone / "scripts" / "quick_test_real.sh"
    assert run(script, "--evaluator", "a:b", PYTHON=str(recorder)).returncode == 0
    assert not {"--pair", "--gpu"} & set(modules_run(tmp_path)[0])


def choosing_a_pair(clone: Path, python: Path) -> list[str]:
    """The bash command that prints the name of the pair its arguments say."""
    code = 'source "$1/scripts/lib.sh"; PY=$2; shift 2; choose_pair "$@"; echo "$PAIR"'
    return ["-euo", "pipefail", "-c", code, "test", str(clone), str(python)]


@pytest.mark.parametrize(
    ("arguments", "environment", "pair"),
    [
        (["--pair", "llamba-1b"], {}, "llamba-1b"),
        (["--pair=llamba-1b", "--seed", "1"], {"PAIR": "tiny", "BASE": "org/x"}, "llamba-1b"),
        ([], {"PAIR": "llamba-8b"}, "llamba-8b"),
        ([], {"PAIR": "tiny", "DONOR": "hf:org/x"}, "tiny/base:hf:org/x"),
        (["--base", "org/a", "--donor=hf:org/b@c"], {"PAIR": "tiny"}, "org/a:hf:org/b@c"),
    ],
)
def test_the_pair_follows_arguments_then_environment(
    arguments: list[str], environment: dict[str, str], pair: str, clone: Path, run: Run, recorder: Path
) -> None:
    done = run(*choosing_a_pair(clone, recorder), *arguments, **environment)
    assert (done.stdout.strip(), done.stderr) == (pair, "")


def test_a_pair_that_cannot_be_ends_the_script_with_one_line(clone: Path, run: Run, recorder: Path) -> None:
    done = run(*choosing_a_pair(clone, recorder), "--base", "org/a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "the base org/a has no donor; give --donor MODEL" in done.stderr


def test_folders_and_hub_ids_reach_the_search_as_they_were_given(
    clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    given = ["--base", "./my base", "--donor", "hf:org/llama"]
    script = clone / "scripts" / "quick_test_real.sh"
    assert run(script, *given, PYTHON=str(recorder), PAIR="tiny").returncode == 0
    (search,) = modules_run(tmp_path)
    assert search[-4:] == given
    assert "--pair" not in search


def test_deploying_two_models_of_ones_own(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    (tmp_path / "my base").mkdir()
    done = run(clone / "DEPLOY_TEST.sh", "--base", "my base", "--donor=hf:org/llama", PYTHON=str(recorder))
    assert done.returncode == 0, done.stderr
    pair = f"{tmp_path}/my base:hf:org/llama"
    calls = modules_run(tmp_path)
    assert {call[call.index("--pair") + 1] for call in calls if "--pair" in call} == {pair}
    (checkpoint,) = {call[call.index("--checkpoint") + 1] for call in calls if "--checkpoint" in call}
    assert Path(checkpoint).parent == clone / "model_checkpoints"
    assert Path(checkpoint).name.endswith("my_base_hf_org_llama")


def test_deploying_goes_through_all_steps_in_order(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    done = run(clone / "DEPLOY_TEST.sh", "--seed", "3", PYTHON=str(recorder), PAIR="tiny")
    assert done.returncode == 0, done.stderr
    calls = modules_run(tmp_path)
    assert [call[0].rpartition(".")[2] for call in calls] == [
        "modelscope_utils",
        "extract_layers",
        "test_specific_combination",
        "run_search",
        "create_replaced_model_checkpoint",
        "test_checkpoint",
        "check_deployment",
    ]
    assert all(call[1:3] == ["--pair", "tiny"] for call in calls if "--pair" in call)
    search = calls[3]
    options = dict(zip(search[1::2], search[2::2], strict=True))
    assert options["--seed"] == "3"
    assert Path(options["--output-dir"]).parent == clone / "results"
    assert [f"[{i}/9]" in done.stdout for i in range(1, 10)] == [True] * 9
    report = Path(options["--output-dir"]) / "checkpoint_test.json"
    assert json.loads(report.read_text()) == {"module": "model_preparation.test_checkpoint"}


@pytest.mark.parametrize("failing", ["extract_layers", "run_search", "test_checkpoint", "check_deployment"])
def test_deploying_stops_at_the_step_that_fails(
    failing: str, clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    done = run(clone / "DEPLOY_TEST.sh", PYTHON=str(recorder), PAIR="tiny", FAILING=failing)
    assert done.returncode != 0
    assert modules_run(tmp_path)[-1][0].endswith(failing)


@pytest.mark.parametrize(
    ("pair", "suffix"),
    [("tiny", "_tiny"), ("llamba-8b", ""), ("llamba-8b-aligned", "")],  # the last two have one donor
)
def test_layers_of_another_donor_are_left_where_they_are(
    pair: str, suffix: str, clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    layers = clone / "extracted_llama_layers"
    layers.mkdir()
    source = "LLM-Research/Meta-Llama-3.1-8B-Instruct"
    (layers / "metadata.json").write_text(json.dumps({"pair": "llamba-8b", "source": source}, indent=2))
    assert run(clone / "DEPLOY_TEST.sh", PYTHON=str(recorder), PAIR=pair).returncode == 0
    extraction = modules_run(tmp_path)[1]
    assert extraction[extraction.index("--output_dir") + 1] == f"{layers}{suffix}"


def test_layers_of_another_revision_are_left_where_they_are(
    clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    layers = clone / "extracted_llama_layers"
    layers.mkdir()
    (layers / "metadata.json").write_text(json.dumps({"source": make_pair("tiny/base", "hf:o/llama@r1").donor.name}))
    for revision, suffix in (("r1", ""), ("r2", "_tiny_base_hf_o_llama_r2")):
        pair = f"tiny/base:hf:o/llama@{revision}"
        assert run(clone / "DEPLOY_TEST.sh", PYTHON=str(recorder), PAIR=pair).returncode == 0
        extraction = [call for call in modules_run(tmp_path) if call[0].endswith("extract_layers")][-1]
        assert extraction[extraction.index("--output_dir") + 1] == f"{layers}{suffix}"


@pytest.mark.parametrize("arguments", [["--pair"], ["--what"], ["tiny"]])
def test_deploying_refuses_arguments_it_does_not_know(arguments: list[str], clone: Path, run: Run) -> None:
    done = run(clone / "DEPLOY_TEST.sh", *arguments)
    assert done.returncode == 2
    assert "usage: ./DEPLOY_TEST.sh" in done.stderr


def test_making_the_best_checkpoints_passes_arguments_and_settings_on(
    clone: Path, run: Run, recorder: Path, tmp_path: Path
) -> None:
    given = ["--base", "my base", "--output_dir", "made here"]
    assert run(clone / "model_preparation" / "create_best_checkpoints.sh", *given, PYTHON=str(recorder)).returncode == 0
    assert modules_run(tmp_path) == [["model_preparation.create_best_checkpoints", *given]]


def test_a_real_search_with_a_fake_evaluator_and_what_is_shown_of_it(run: Run, tmp_path: Path) -> None:
    work = tmp_path / "a 'quoted' folder"
    work.mkdir()
    fake = (ROOT / "tests" / "scripts" / "fake_evaluator.py").read_text()
    (work / "fake_evaluator.py").write_text(fake)
    (work / "random.py").write_text("raise SystemExit('a file of the folder was imported for the library')")
    options = ["--evaluator", "fake_evaluator:make", "--output-dir", "found/here", "--generations", "2"]
    quick = ROOT / "scripts" / "quick_test_real.sh"
    done = run(quick, *options, "--population", "6", "--seed", "1", cwd=work, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout.splitlines()[-1])
    assert {1, 3} <= set(best["layers"])

    results = ROOT / "scripts" / "check_results.sh"
    shown = run(results, "found/here", cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert "+".join(map(str, best["layers"])) in shown.stdout
    shown = run(results, "--json", "found/here", cwd=work)
    assert json.loads(shown.stdout)["finished"][0]["layers"] == best["layers"]
    monitor = ROOT / "scripts" / "monitor_progress.sh"
    shown = run(monitor, "--dir", "found", cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert "finished" in shown.stdout.splitlines()[0]
    count = best["question_evaluations"]
    assert f"{count:,} on " in shown.stdout

    Path(best["result"]).unlink()  # what was killed before its end looks like this
    shown = run(monitor, "--once", "found/here", cwd=work)
    lines = dict(line.split(maxsplit=1) for line in shown.stdout.replace("of those asked most", "").splitlines()[1:])
    assert ": stopped" in shown.stdout.splitlines()[0]
    assert lines["best"].split()[0] == "+".join(map(str, best["layers"]))
    assert lines["stage"] == "hold-out, finalists"
    assert lines["question-evaluations"].startswith(f"{count:,} of about {count:,} on ")
    assert "not known" not in shown.stdout
    shown = run(monitor, "--once", "--json", "--all", "--dir", "found", cwd=work)
    (looked,) = json.loads(shown.stdout)["runs"]
    assert (looked["state"], looked["best"]["layers"]) == ("stopped", best["layers"])
