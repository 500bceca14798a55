from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from evaluation.entry import Parser, in_language, run_tool
from evaluation.errors import EvaluationError
from genetic_algorithm.errors import SearchError
from models.errors import ModelError

ROOT = Path(__file__).resolve().parents[2]


def _raising(error: BaseException):
    def main(argv: Sequence[str] | None) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ModelError("no pair 'x'; known: tiny"), 2, "tool: error: no pair 'x'; known: tiny\n"),
        (SearchError("--seed -1"), 2, "tool: error: --seed -1\n"),
        (EvaluationError("two\nlines"), 2, "tool: error: two lines\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "x.pt"),
            1,
            "tool: error: x.pt: No such file; check that path and its permissions, or choose another\n",
        ),
        (SystemExit("bad call"), 1, "tool: error: bad call\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_an_error_of_the_user_is_one_line_and_an_exit_code(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("tool", _raising(error), []) == code
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_what_to_do(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("tool", _raising(OSError(number, "x", "/data/j")), []) == 1
    told = capsys.readouterr().err
    assert told.startswith("tool: error: the disk is full for /data/j")
    assert "free some space" in told
    assert told.count("\n") == 1


def test_ctrl_c_is_one_line_that_says_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("tool", _raising(KeyboardInterrupt()), []) == 130
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "same command again" in told


def test_bad_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--layers", type=int, nargs="+")
    assert run_tool("tool", lambda argv: bool(parser.parse_args(argv)), ["--layers"]) == 2
    told = capsys.readouterr().err
    assert told == "tool: error: argument --layers: expected at least one argument; --help lists the options\n"


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("model_preparation/load_checkpoint.py --checkpoint x", "torch"),
        ("model_preparation/test_specific_combination.py --pair tiny --layers 2", "numpy"),
        ("-m genetic_algorithm.run_search --pair tiny --dry-run", "numpy"),
        ("-m genetic_algorithm.report x", "numpy"),
        ("-m evaluation.doctor", "numpy"),
        ("-m evaluation.lm", "lm_eval"),
    ],
)
def test_a_python_without_the_packages_is_told_in_one_line(words: str, package: str) -> None:
    command = [sys.executable, "-S", *words.split()]  # -S: without site-packages
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={})
    assert done.returncode == 1
    assert f" error: {sys.executable} has no package {package}; activate the environment" in done.stderr
    assert "conda activate ga_layer_search" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_module_of_ones_own_that_is_missing_keeps_its_traceback() -> None:
    for name in ("my_evaluator", "torch.nowhere"):
        with pytest.raises(ModuleNotFoundError):
            run_tool("tool", _raising(ModuleNotFoundError(name=name)), [])


def test_a_programming_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_tool("tool", _raising(ZeroDivisionError()), [])


def test_with_ga_debug_every_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GA_DEBUG", "1")
    for error in (SearchError("x"), OSError(errno.ENOSPC, "x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            run_tool("tool", _raising(error), [])


def test_arguments_and_the_exit_code_pass_through() -> None:
    seen: list[Sequence[str] | None] = []

    def main(argv: Sequence[str] | None) -> int:
        seen.append(argv)
        return 7

    assert run_tool("tool", main, ["--x"]) == 7
    assert run_tool("tool", main) == 7
    assert seen == [["--x"], None]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = (
        "import sys; from evaluation.entry import Parser, run_tool\n"
        "def main(argv):\n    for i in range(100000): print(i, flush=True)\n    return 0\n"
        "sys.exit(run_tool('tool', main, []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_importing_it_loads_no_torch() -> None:
    program = "import sys, evaluation.entry, evaluation.remembering; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "hello"),
        ({"LANG": "zh_CN.UTF-8"}, "你好"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "hello"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW"}, "你好"),
        ({"LANG": "zh_CN.UTF-8", "GA_LANGUAGE": "en"}, "hello"),
        ({"LANG": "zh_CN.UTF-8", "GA_LANGUAGE": ""}, "你好"),
    ],
)
def test_the_language_is_that_of_the_script_else_of_the_locale(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GA_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_language("hello", "你好") == told
