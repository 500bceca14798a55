"""The last line that a script says is in the language of the locale; what machines read is the same in each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Run, write_program

NO_LOCALE = {"LC_ALL": "", "LC_MESSAGES": "", "LANG": ""}
CHINESE = NO_LOCALE | {"LANG": "zh_CN.UTF-8"}


@pytest.mark.parametrize(
    ("locale", "told"),
    [
        ({}, "hello"),
        ({"LANG": "zh_CN.UTF-8"}, "你好"),
        ({"LANG": "zh_TW"}, "你好"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "hello"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "你好"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8", "LC_ALL": "C"}, "hello"),
    ],
)
def test_the_locale_of_messages_decides(locale: dict[str, str], told: str, run: Run) -> None:
    done = run("-c", 'source "$0/scripts/lib.sh"; last_line hello 你好', ROOT, **(NO_LOCALE | locale))
    assert done.stderr.splitlines()[-1] == told
    assert done.stdout == ""


def test_a_search_its_results_and_its_monitor(run: Run, tmp_path: Path) -> None:
    (tmp_path / "fake_evaluator.py").write_text((ROOT / "tests" / "scripts" / "fake_evaluator.py").read_text())
    options = ["--evaluator", "fake_evaluator:make", "--output-dir", "found", "--generations", "2", "--population", "6"]
    scripts = ROOT / "scripts"
    for locale, found, report, show in (
        (CHINESE, "搜索完成，最优层组合为 ", "  报告：", "查看搜索结果："),
        (NO_LOCALE, "the search found ", "  report: ", "what was found: "),
    ):
        searched = run(scripts / "quick_test_real.sh", *options, PYTHON=sys.executable, **locale)
        assert searched.returncode == 0, searched.stderr
        best = json.loads(searched.stdout.splitlines()[-1])
        last = searched.stderr.splitlines()[-1]
        assert last.startswith(found + "+".join(map(str, best["layers"])))
        make = f"scripts/create_checkpoint.sh --from_result {best['result']} --output_dir model_checkpoints/best"
        assert last.endswith(make)
        shown = run(scripts / "check_results.sh", "found", PYTHON=sys.executable, **locale)
        assert shown.stderr == ""
        assert shown.stdout.splitlines()[-1] == f"{report}found/report.html"
        watched = run(scripts / "monitor_progress.sh", "found", PYTHON=sys.executable, **locale)
        assert watched.stderr.splitlines()[-1].startswith(show)
        for script, *more in (("check_results.sh",), ("monitor_progress.sh", "--once")):
            silent = run(scripts / script, *more, "--json", "found", PYTHON=sys.executable, **locale)
            assert silent.stderr == ""


@pytest.mark.parametrize(("locale", "told"), [(CHINESE, "全部通过；报告："), (NO_LOCALE, "open the report, ")])
def test_the_whole_road(locale: dict[str, str], told: str, clone: Path, run: Run, recorder: Path) -> None:
    done = run(clone / "DEPLOY_TEST.sh", PYTHON=str(recorder), PAIR="tiny", **locale)
    assert done.returncode == 0, done.stderr
    assert told in done.stderr.splitlines()[-1]
    failed = run(clone / "DEPLOY_TEST.sh", PYTHON=str(recorder), PAIR="tiny", FAILING="check_deployment", **locale)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(
        "DEPLOY_TEST.sh：未通过" if locale == CHINESE else "DEPLOY_TEST.sh: not"
    )


def test_a_checkpoint_and_the_checks(run: Run, clone: Path, tmp_path: Path) -> None:
    options = ["--pair", "tiny", "--layers", "0", "--formats", "safetensors", "--force", "--output_dir", "a b"]
    check = write_program(clone / "scripts" / "check.sh", "#!/bin/sh\nexit $CODE\n")
    assert check.exists()
    for locale, test, passed, failed in (
        (CHINESE, "测试这个 checkpoint：", "run_tests.sh：全部检查通过", "run_tests.sh：未通过，"),
        (NO_LOCALE, "test it with: ", "run_tests.sh: all checks passed", "run_tests.sh: not passed; "),
    ):
        made = run(ROOT / "scripts" / "create_checkpoint.sh", *options, PYTHON=sys.executable, **locale)
        assert made.returncode == 0, made.stderr
        last = made.stderr.splitlines()[-1]
        assert last == f"{test}{sys.executable} {ROOT}/model_preparation/test_checkpoint.py --checkpoint 'a b'"
        assert json.loads(made.stdout)["checkpoint"] == "a b"
        for code, told in ((0, passed), (3, failed)):
            done = run(clone / "scripts" / "run_tests.sh", PYTHON=sys.executable, CODE=str(code), **locale)
            assert done.returncode == code
            assert done.stderr.splitlines()[-1].startswith(told)


def test_checkpoints_and_jobs(clone: Path, run: Run, recorder: Path, tmp_path: Path) -> None:
    write_program(tmp_path / "bin" / "sbatch", "#!/bin/sh\necho 42\n")
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    for locale, test, queued in (
        (CHINESE, "测试其中一个 checkpoint：", "submit.sh：作业 42 已提交"),
        (NO_LOCALE, "test one with: ", "submit.sh: job 42 is in the queue"),
    ):
        script = clone / "model_preparation" / "create_best_checkpoints.sh"
        assert run(script, PYTHON=str(recorder), **locale).stderr.splitlines()[-1].startswith(test)
        submitted = run(clone / "scripts" / "submit.sh", PYTHON=str(recorder), PATH=path, **locale)
        assert submitted.stderr.splitlines()[-1].startswith(queued), submitted.stderr
        assert submitted.stdout.startswith("job 42\n")
