from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.entry import run_tool
from genetic_algorithm import arguments, run_folder, run_search
from genetic_algorithm.progress import spell_seconds
from tests.genetic_algorithm.conftest import FACTORY, ROOT, SMALL, CommandLine

pytestmark = pytest.mark.usefixtures("no_drawings")
HERE = ["--evaluator", FACTORY, *SMALL]


@pytest.fixture(autouse=True)
def _small_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_QUESTIONS", "70")
    for name in ("PAIR", "BASE", "DONOR"):
        monkeypatch.delenv(name, raising=False)


def _run(*flags: str) -> int:
    return run_tool("run_search", run_search.main, [*HERE, *flags])


def test_a_run_leaves_config_log_journal_and_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a run, with spaces"
    assert _run("--output-dir", str(folder), "--seed", "3") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    stamp = json.loads((folder / "config.json").read_text())["timestamp"]
    names = {"config.json", "journal.jsonl", f"search_log_{stamp}.txt", f"search_result_{stamp}.json"}
    assert {path.name for path in folder.iterdir()} == names | {"report.html", "report.json"}
    assert last["report"] == str(folder / "report.html")

    result = json.loads((folder / f"search_result_{stamp}.json").read_text())
    final = result["final_results"]
    assert last["layers"] == final[0]["layers"]
    assert last["accuracy"] == final[0]["accuracy"]
    assert last["result"] == str(folder / f"search_result_{stamp}.json")
    assert [entry["rank"] for entry in final] == list(range(1, len(final) + 1))
    best = final[0]
    assert best["accuracy"] == pytest.approx(best["correct"] / best["questions"], abs=1e-6)
    assert best["holdout_questions"] == 72
    assert 0 <= best["p_value_vs_runner_up"] <= 1
    assert best["p_value_vs_best"] is None
    assert final[-1]["p_value_vs_runner_up"] is None
    assert None in [entry["holdout_accuracy"] for entry in final]  # only finalists are asked
    assert set(result["best_per_layer_count"]) <= {"1", "2", "3", "4"}
    assert result["patterns"]
    assert list(result["stages"]) == ["stage 1", "stage 2", "stage 3"]
    assert result["search"]["seed"] == 3
    assert set(result["usage"]) == {"stage 1", "stage 2", "stage 3", "hold-out", "in_all"}
    assert result["versions"]["python"]
    assert result["base"]["layers"] == []
    assert last["conclusion"] == result["conclusion"]

    log = (folder / f"search_log_{stamp}.txt").read_text()
    assert re.search(r"stage 1, generation 1: \d+ sets x \d+ questions in .*; about .* left", log)
    assert re.search(r" I begins stage 1, first sets: 13 sets x \d+ questions; 0 of about [\d,]+ done", log)
    assert re.findall(r" I begins ([^,]+), ", log) == ["stage 1", "stage 2", "stage 3", "hold-out"]
    asked = last["question_evaluations"]
    assert f"; {asked:,} of {asked:,} done\n" in log
    assert result["conclusion"] in log
    assert result["ranked_by"] in log


def test_the_original_way_has_its_stages_and_no_hold_out(tmp_path: Path) -> None:
    assert _run("--output-dir", str(tmp_path / "run"), "--strategy", "ga-original", "--holdout", "0") == 0
    (path,) = (tmp_path / "run").glob("search_result_*.json")
    result = json.loads(path.read_text())
    assert set(result["usage"]) == {"stage 1", "stage 2", "stage 3", "play-off", "hold-out", "in_all"}
    assert list(result["stages"]["stage 2"]) == ["candidates"]
    assert set(result["best_per_layer_count"]) == {"1", "2", "3", "4"}
    assert result["usage"]["hold-out"]["question_evaluations"] == 0
    assert result["search"]["max_passes"] is None
    assert result["final_results"][0]["questions_also_chose"]
    assert "by which it was chosen, so they may flatter it" in result["conclusion"]


def test_the_log_ends_with_the_error_that_ended_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIM_BROKEN", "all")
    assert _run("--output-dir", str(tmp_path / "run")) == 2
    (log,) = (tmp_path / "run").glob("search_log_*.txt")
    last = log.read_text().splitlines()[-1]
    assert " E the search ended by EvaluationError: no layer set can be evaluated" in last
    assert capsys.readouterr().err.count("no layer set can be evaluated") == 1


def test_a_finished_run_says_so_and_tells_its_result_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    again = capsys.readouterr()
    assert again.out.splitlines()[-1] == first
    assert "finished already" in again.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_rerun_without_result_resumes_from_the_journal_into_the_same_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert _run("--output-dir", str(folder)) == 0
    (path,) = folder.glob("search_result_*.json")
    first = json.loads(path.read_text())
    path.unlink()
    journal = (folder / "journal.jsonl").read_bytes()
    assert _run("--output-dir", str(folder)) == 0
    assert json.loads(path.read_text())["final_results"] == first["final_results"]
    for stage, spent in json.loads(path.read_text())["usage"].items():  # seconds too: the journal has them, rounded
        assert spent == {**first["usage"][stage], "seconds": pytest.approx(first["usage"][stage]["seconds"], abs=2e-3)}
    assert (folder / "journal.jsonl").read_bytes() == journal
    (log,) = folder.glob("search_log_*.txt")
    assert "resuming the search" in log.read_text()


def test_without_a_folder_it_makes_one_below_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "project_root", lambda: tmp_path)
    assert _run() == 0
    assert _run() == 0  # in the same second, perhaps
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    folders = sorted((tmp_path / "results").iterdir())
    assert len(folders) == 2
    assert all(re.fullmatch(r"real_\d{8}_\d{6}(_2)?", folder.name) for folder in folders)
    assert Path(last["result"]).parent in folders


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seed", "1"], "search.seed was 0 and is now 1"),
        (["--max-layers", "3"], "search.max_layers was 4 and is now 3"),
        (["--elite", "ELITE"], "elite was [] and is now [[0, 2]]"),
    ],
)
def test_a_run_of_another_configuration_names_the_field_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    (tmp_path / "elite.json").write_text("[[2, 0]]")
    flags = [str(tmp_path / "elite.json") if flag == "ELITE" else flag for flag in flags]
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert _run("--output-dir", str(tmp_path / "run"), *flags) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def _prepare(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "outside.json").write_text("[[0, 12]]")
    (tmp_path / "twice.json").write_text("[[3, 3]]")
    (tmp_path / "many.json").write_text("[[1, 2, 3, 4, 5]]")
    (tmp_path / "scores.json").write_text('{"0": 0.4, "1": 0.5}')
    (tmp_path / "high.json").write_text('{"0": 51.4}')
    (tmp_path / "scores.csv").write_text("layer;score\n")
    (tmp_path / "deep.json").write_text(json.dumps({str(i): 0.3 for i in range(32)}))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--output-dir", "other"], "is not empty and not a search run (it has thesis.tex"),
        (["--output-dir", "file"], "is a file; name a folder"),
        (["--output-dir", "broken"], "is not the configuration of a search run"),
        (["--elite", "missing.json"], "missing.json does not exist"),
        (["--elite", "list.json"], "1 is not a list of layers"),
        (["--elite", "outside.json"], "layer 12 (in 0+12) does not exist; the model has layers 0 to 11"),
        (["--elite", "twice.json"], "layer 3 is named twice"),
        (["--elite", "many.json"], "1+2+3+4+5 has 5 layers"),
        (["--elite", "scores.csv"], "is not JSON"),
        (["--single-layer-scores", "scores.json"], "lacks layer 2; give all 12 layers"),
        (["--single-layer-scores", "high.json"], "0: 51.4 is not a layer with an accuracy between 0 and 1"),
        (["--single-layer-scores", "scores.csv"], "neither JSON"),
        (["--single-layer-scores", "deep.json"], "scores layer 12, but the model's layers are 0 to 11"),
        (["--max-layers", "13"], "--max-layers 13 is more than the model's 12 layers"),
        (["--population", "0"], "--population must be at least 1, got 0"),
        (["--fast-limit", "50"], "--fast-limit 50 is more than --full-limit 40"),
        (["--fast-limit", "ten"], "argument --fast-limit: 'ten' is neither a number nor none"),
        (["--tasks", "mmlu"], "--tasks has no effect beside --evaluator"),
        (["--base", "org/x"], "--base has no effect beside --evaluator"),
        (["--evaluator", "nothing"], "nothing is not MODULE:FACTORY"),
        (["--evaluator", "no.such:x"], "No module named 'no'"),
        (["--evaluator", "json:nothing"], "json has no factory nothing"),
        (["--evaluator", "builtins:dict"], "made a dict, which has no num_layers"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    told: str,
) -> None:
    _prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--output-dir" in flags else ["--output-dir", "new"]
    assert _run(*flags, *out) == 2
    err = capsys.readouterr().err
    assert told in err.splitlines()[-1]
    assert "error: " in err.splitlines()[-1]
    assert err.count("\n") == 1 or "usage:" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_given_device_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("run_search", run_search.main, ["--gpu", "-1", "--dry-run"]) == 2
    assert "--gpu -1 is no device" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dry-run", "--output-dir", str(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    plan = json.loads(out.splitlines()[-1])
    assert not (tmp_path / "run").exists()
    assert plan["question_evaluations"] <= plan["question_evaluations_at_most"]
    assert plan["seconds"] == pytest.approx(plan["question_evaluations"] * 0.0015, abs=0.1)
    assert plan["memory"] == "0.1 GB"
    assert "stage 3" in out


def test_elite_and_scores_come_from_files_and_from_an_earlier_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores.csv").write_text(
        "layers,mmlu_acc\n" + "".join(f"{i},0.{30 + i}\n" for i in range(12)) + "1+2,0.5\n"
    )
    assert _run("--output-dir", str(tmp_path / "a"), "--single-layer-scores", str(tmp_path / "scores.csv")) == 0
    (first,) = (tmp_path / "a").glob("search_result_*.json")
    assert _run("--output-dir", str(tmp_path / "b"), "--elite", str(first)) == 0
    (second,) = (tmp_path / "b").glob("search_result_*.json")
    document = json.loads(second.read_text())
    assert document["elite"] == [entry["layers"] for entry in json.loads(first.read_text())["final_results"]]
    assert json.loads(first.read_text())["single_layer_scores"]["3"] == 0.33


def test_one_bad_set_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIM_BROKEN", "2")
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    assert "2 could not be evaluated (RuntimeError: 2 does not fit): it is left out" in capsys.readouterr().err
    (path,) = (tmp_path / "run").glob("search_result_*.json")
    assert json.loads(path.read_text())["failed"] == [[2]]


def test_when_nothing_can_be_evaluated_one_line_names_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIM_BROKEN", "all")
    assert _run("--output-dir", str(tmp_path / "run")) == 2
    err = capsys.readouterr().err.splitlines()
    assert "no layer set can be evaluated" in err[-1]
    assert "does not fit" in err[-1]
    monkeypatch.delenv("SIM_BROKEN")
    assert _run("--output-dir", str(tmp_path / "run")) == 0  # nothing was spoilt


def test_a_journal_of_another_evaluator_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    next((tmp_path / "run").glob("search_result_*.json")).unlink()
    monkeypatch.setenv("SIM_SEED", "5")
    capsys.readouterr()
    assert _run("--output-dir", str(tmp_path / "run")) == 2
    err = capsys.readouterr().err.splitlines()
    assert "seed was 0 and is now 5" in err[-1]


def test_leftovers_of_a_run_killed_at_its_first_step_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.123.tmp").write_text('{"half')
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    assert not list((tmp_path / "run").glob(".*"))


def test_a_damaged_result_says_how_to_get_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--output-dir", str(tmp_path / "run")) == 0
    next((tmp_path / "run").glob("search_result_*.json")).write_text("{")
    capsys.readouterr()
    assert _run("--output-dir", str(tmp_path / "run")) == 2
    assert "delete that file and give the same command again" in capsys.readouterr().err


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    run = {"search": 1}
    with (
        run_folder.opened(tmp_path / "run", run, {}) as opened,
        pytest.raises(run_folder.SearchError, match="another search is running"),
        run_folder.opened(tmp_path / "run", run, {}),
    ):
        pass
    assert not opened.is_resumed
    with run_folder.opened(tmp_path / "run", run, {}) as again:
        assert again.is_resumed


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("run_search", run_search.main, ["--help"]) == 0
    told = capsys.readouterr().out
    flags = (
        "pair base donor tasks mmlu-dir question-order fast-limit full-limit population generations no-improve preset "
        "min-layers "
        "max-layers seed single-layer-scores elite output-dir gpu dtype batch-tokens evaluator dry-run"
    )
    for flag in flags.split():
        assert f"--{flag}" in told
    assert "examples:" in told
    assert re.search(r"--full-limit +150 +50 +none", told)


def test_a_pair_of_ones_own_is_searched_on_the_bundled_questions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT / "models" / "tiny_pair")
    monkeypatch.setenv("PAIR", "no such pair")  # options put it out of force
    flags = ["--base", "base", "--donor", "donor", "--tasks", "tiny", "--gpu", "cpu", "--dry-run"]
    assert run_tool("run_search", run_search.main, [*flags, "--fast-limit", "2", "--full-limit", "3"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (plan["layers"], plan["subjects"]) == (12, 4)


def test_two_models_have_one_name_in_every_sitting(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "models" / "tiny_pair"
    monkeypatch.chdir(folder)
    name = f"{folder}/base:hf:org/llama"
    job = run_search._job(run_search.parse(["--base", "./base", "--donor", "hf:org/llama", "--gpu", "cpu"]))
    assert (job.pair, job.run["evaluator"]["pair"]) == (name, name)
    assert job.config == run_search._job(run_search.parse(["--pair", "llamba-8b", "--gpu", "cpu"])).config
    monkeypatch.setenv("BASE", "base")
    monkeypatch.setenv("PAIR", "tiny")
    mixed = run_search._job(run_search.parse(["--gpu", "cpu"]))
    assert mixed.pair == f"{folder}/base:tiny/donor"
    assert mixed.config == run_search._job(run_search.parse(["--pair", "tiny", "--gpu", "cpu"])).config
    resume = arguments.resume_command("python", ["--seed", "1"], mixed.pair, Path("run"))
    assert resume[-6:] == ["--seed", "1", "--pair", mixed.pair, "--output-dir", "run"]
    assert "--pair" not in arguments.resume_command("python", ["--base=base", "--donor", "x"], name, Path("run"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--base", "org/x"], "the base org/x has no donor; give --donor MODEL"),
        (["--pair", "tiny", "--donor", "./nowhere"], "the donor './nowhere' is neither a folder here nor a hub id"),
    ],
)
def test_models_that_cannot_be_are_refused_in_one_line(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("run_search", run_search.main, flags) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_the_whole_search_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom genetic_algorithm.run_search import main\n"
        f"code = main({[*HERE, '--output-dir', str(tmp_path / 'run')]!r})\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["layers"]


def test_it_runs_from_any_folder_with_a_users_own_evaluator(command_line: CommandLine) -> None:
    module = "from tests.genetic_algorithm.simulator import Simulator\ndef make(): return Simulator(1, 70)\n"
    (command_line.folder / "mine.py").write_text(module)
    done = command_line.run_anew("--evaluator", "mine:make")
    assert done.returncode == 0, done.stderr
    assert command_line.result()["evaluator"] == {"factory": "mine:make"}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (59.4, "59 s"), (190, "3 min 10 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_times_are_told_as_people_do(seconds: float, told: str) -> None:
    assert spell_seconds(seconds) == told
