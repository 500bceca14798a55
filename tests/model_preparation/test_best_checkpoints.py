"""Checkpoints of the best layer sets: the known ones, those of a search's result, and what happens if one fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from evaluation.entry import run_tool
from model_preparation import create_best_checkpoints as tool
from model_preparation import load_model
from model_preparation.checkpoints.writing import SMALL_FILES
from model_preparation.create_best_checkpoints import folder_name, known_best, main
from models.pairs import get_pair, make_pair

ROOT = Path(__file__).resolve().parents[2]


def entry(layers: list[int], accuracy: float = 0.5) -> dict[str, Any]:
    """A layer set as a result tells of it."""
    return {"layers": layers, "accuracy": accuracy, "standard_error": 0.02, "questions": 640}


def write_result(path: Path, pair: str | None, **changed: Any) -> Path:
    """A search's result whose ranking lacks the best single layer."""
    document = {
        "final_results": [{"rank": 1} | entry([0, 2], 0.9), {"rank": 2} | entry([0, 1, 3], 0.8)],
        "best_per_layer_count": {
            "10": entry([0, 1, 2, 3], 0.1),
            "2": entry([0, 2], 0.9),
            "1": entry([2], 0.75),
            "0": entry([]),
            "3": entry([0, 1, 3], 0.8),
            "4": None,
        },
        "evaluator": {"pair": pair, "tasks": ["mmlu"], "num_fewshot": 0},
        "search": {"full_limit": None},
    }
    path.write_text(json.dumps(document | changed))
    return path


@pytest.fixture
def result(pair_name: str, tmp_path: Path) -> Path:
    """Of the pair of these tests."""
    return write_result(tmp_path / "search_result_1.json", pair_name)


@pytest.fixture
def command(layers_dir: Path, tmp_path: Path) -> list[str]:
    """What most command lines here share."""
    return ["--llama_layers_dir", str(layers_dir), "--output_dir", str(tmp_path / "made"), "--formats", "safetensors"]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object the tool ended with."""
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def info_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "checkpoint_info.json").read_text()))


def test_the_published_sets_have_the_names_and_scores_of_the_guide() -> None:
    pair = get_pair("llamba-8b")
    assert folder_name(pair) == "llamba"
    wanted = {one.layers: dict(zip(one.options[-4::2], one.options[-3::2], strict=True)) for one in known_best(pair)}
    assert {(17,), (13, 17), (11, 13, 17), (13, 16, 17), (11, 13, 17, 29), (11, 13, 17, 21)} <= set(wanted)
    assert wanted[11, 13, 17]["--score"] == "0.589"
    assert wanted[11, 13, 17, 21]["--score"] == "0.57"


def test_folders_of_other_pairs_are_told_apart(pair_name: str, tmp_path: Path) -> None:
    names = [folder_name(get_pair(name)) for name in ("tiny", "llamba-8b-aligned", "llamba-1b", pair_name)]
    assert names == ["tiny", "llamba-8b-aligned", "llamba-1b", "base"]
    (tmp_path / "a b$c").mkdir()
    assert folder_name(make_pair(str(tmp_path / "a b$c"), "tiny/donor")) == "a_b_c"


def test_the_best_sets_of_a_result_are_made_small_ones_first(
    result: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], pair_name: str
) -> None:
    assert main([*command, "--from-result", str(result)]) == 0
    sets = [[2], [0, 2], [0, 1, 3], [0, 1, 2, 3]]
    names = [f"base_replaced_{'_'.join(map(str, layers))}" for layers in sets]
    assert told(capsys) == {
        "pair": pair_name,
        "output_dir": str(tmp_path / "made"),
        "made": names,
        "kept": [],
        "failed": [],
    }
    for name, layers in zip(names, sets, strict=True):
        folder = tmp_path / "made" / name
        assert info_of(folder)["replaced_layers"] == layers
        assert info_of(folder)["formats"] == ["safetensors"]
        assert load_model(folder)[0].config.attention_layers == tuple(layers)
    ranked, alone = info_of(tmp_path / "made" / names[1]), info_of(tmp_path / "made" / names[0])
    assert ranked["score"]["accuracy"] == ranked["mmlu_score"] == 0.9
    assert "the best of 2 layers that a search found (search_result_1.json)" in ranked["description"]
    assert alone["score"] is None
    assert alone["description"].endswith("(search_result_1.json): 0.7500 +- 0.0200 on 640 questions")


def test_what_is_there_is_kept_unless_forced(
    result: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(result, info_pair(result), best_per_layer_count={"1": entry([2]), "2": entry([0, 2])})
    command = [*command, "--from-result", str(result)]
    assert main(command) == 0
    capsys.readouterr()
    marked = tmp_path / "made" / "base_replaced_2" / "notes.txt"
    marked.write_text("mine")
    assert main(command) == 0
    assert told(capsys)["kept"] == ["base_replaced_2", "base_replaced_0_2"]
    assert marked.exists()
    assert main([*command, "--force"]) == 0
    assert told(capsys)["made"] == ["base_replaced_2", "base_replaced_0_2"]
    assert not marked.exists()


def test_all_are_made_in_the_formats_for_which_the_disk_has_room_in_all_of_them(
    result: Path,
    layers_dir: Path,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_result(result, info_pair(result), best_per_layer_count={"1": entry([2]), "2": entry([0, 2])})
    weights = sum(path.stat().st_size for path in folders[0].glob("*.safetensors"))
    free = 4 * weights + 2 * SMALL_FILES  # all three formats of one, or two of both
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 * free, 9 * free, free))
    made = tmp_path / "made"
    options = ["--llama_layers_dir", str(layers_dir), "--output_dir", str(made), "--from-result", str(result)]
    assert main(options) == 0
    written = {path.parent.name: path.name for path in made.glob("*/*.pt")}
    assert written == {"base_replaced_2": "model.pt", "base_replaced_0_2": "model.pt"}
    assert capsys.readouterr().err.count("model_state_dict.pt") == 1  # said once


def info_pair(result: Path) -> str:
    return str(json.loads(result.read_text())["evaluator"]["pair"])


def test_one_that_fails_is_named_and_the_others_are_made(
    result: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"1": entry([2]), "2": entry([0, 77]), "3": entry([0, 1, 3])}
    write_result(result, info_pair(result), best_per_layer_count=sets)
    in_the_way = tmp_path / "made" / "base_replaced_2"
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes.txt").write_text("mine")
    assert main([*command, "--from-result", str(result)]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["made"], report["failed"]) == (["base_replaced_0_1_3"], ["base_replaced_2", "base_replaced_0_77"])
    assert f"base_replaced_2: error: {in_the_way} exists already and is no checkpoint" in captured.err
    assert "base_replaced_0_77: error: " in captured.err
    assert "not made: base_replaced_2, base_replaced_0_77; the reasons are above" in captured.err
    assert [path.name for path in in_the_way.iterdir()] == ["notes.txt"]


def test_a_checkpoint_of_another_pair_under_that_name_is_not_taken_for_it(
    result: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(result, info_pair(result), best_per_layer_count={"1": entry([2])})
    assert main([*command, "--from-result", str(result)]) == 0
    path = tmp_path / "made" / "base_replaced_2" / "checkpoint_info.json"
    path.write_text(json.dumps(info_of(path.parent) | {"pair": "tiny"}))
    capsys.readouterr()
    assert main([*command, "--from-result", str(result)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["failed"] == ["base_replaced_2"]
    assert "exists already; choose another --output_dir, or replace that folder with --force" in captured.err


@pytest.mark.parametrize("what", ["file", "format", "base", "nothing"])
def test_only_a_whole_checkpoint_of_this_base_in_these_formats_is_kept(
    what: str, layers_dir: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(folders[0], tmp_path / "base")
    options = ["--base", str(base), "--donor", str(folders[1]), "--llama_layers_dir", str(layers_dir)]
    result = write_result(tmp_path / "search_result_1.json", None, best_per_layer_count={"1": entry([2])})
    options += ["--output_dir", str(tmp_path / "made"), "--from-result", str(result), "--formats"]
    assert main([*options, "safetensors"]) == 0
    if what == "file":
        (tmp_path / "made" / "base_replaced_2" / "model.safetensors").unlink()
    if what == "base":
        weights = load_file(base / "model.safetensors")
        weights["backbone.embedding.weight"][3] += 1
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    code = main([*options, "safetensors,state_dict" if what == "format" else "safetensors"])
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    reasons = {
        "file": "model.safetensors is missing",
        "format": "was made without state_dict",
        "base": f"was made of another base than {base} is now",
    }
    if what == "nothing":
        assert (code, report["kept"], report["failed"]) == (0, ["base_replaced_2"], [])
    else:
        assert (code, report["kept"], report["failed"]) == (1, [], ["base_replaced_2"])
        (line,) = [line for line in captured.err.splitlines() if line.startswith("not kept: ")]
        assert reasons[what] in line


def test_an_interruption_ends_it(
    result: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def interrupted(argv: list[str]) -> int:
        asked.append(argv)
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "create", interrupted)
    assert main([*command, "--from-result", str(result)]) == 130
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist; give a search_result_*.json"),
        ("{", "is not the result of a search"),
        ("[]", "is not the result of a search"),
        ('{"final_results": []}', "is not the result of a search (KeyError)"),
        ('{"final_results": [], "best_per_layer_count": {"1": {"layers": ["x"]}}}', "is not the result of a search"),
        ('{"final_results": [], "best_per_layer_count": {"1": {"layers": [1]}}}', "is not the result of a search"),
        ('{"final_results": [], "best_per_layer_count": {"0": null}}', "has no best set of any layer count"),
    ],
)
def test_files_that_are_no_result(
    content: str | None, words: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    assert run_tool("create_best_checkpoints.py", main, [*command, "--from-result", str(path)]) == 2
    assert f"{path} {words}" in capsys.readouterr().err


def test_pairs_that_contradict_or_of_which_nothing_is_known(
    result: Path, command: list[str], capsys: pytest.CaptureFixture[str], pair_name: str
) -> None:
    def error(*options: str) -> str:
        assert run_tool("create_best_checkpoints.py", main, [*command, *options]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert f"is of the pair {pair_name}, not tiny; leave --pair out" in error(
        "--from-result", str(result), "--pair", "tiny"
    )
    for name in (pair_name, "llamba-1b"):
        words = f"no best layer sets are known for the pair {name}; search for them, then give --from-result FILE"
        assert words in error("--pair", name)


def test_the_shell_script_makes_the_best_of_the_bundled_pair(tmp_path: Path) -> None:
    settings = ("PAIR", "BASE", "DONOR", "PYTHONPATH", "CONDA_ENV", "VENV")
    environment = {name: value for name, value in os.environ.items() if name not in settings}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "model_preparation" / "create_best_checkpoints.sh", *options],
            cwd=tmp_path,
            env=environment | {"PYTHON": sys.executable, "PAIR": "tiny"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    done = run("--output_dir", "a folder", "--formats", "safetensors")
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])["made"]
    landscape = json.loads((ROOT / "models" / "tiny_pair" / "landscape.json").read_text())["sets"]
    assert [name.count("_") - 1 for name in names] == [1, 2, 3, 4]
    for name in names:
        layers = name.removeprefix("tiny_replaced_").replace("_", "+")
        rivals = [
            right for other, right in landscape.items() if other.count("+") == layers.count("+") and other != "none"
        ]
        assert landscape[layers] == max(rivals)
        assert info_of(tmp_path / "a folder" / name)["formats"] == ["safetensors"]
    done = run("--from-result", "nothing.json")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("create_best_checkpoints.py: error: nothing.json does not exist")
