"""The tools that test: loading, inference, scores, and what they say of damaged files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.entry import run_tool
from evaluation.errors import EvaluationError
from model_preparation import load_model
from model_preparation import test_specific_combination as combination_tool
from model_preparation.test_checkpoint import main
from models.pairs import PAIRS

ROOT = Path(__file__).resolve().parents[2]
HAS_TINY = (Path(PAIRS["tiny"].base.folder or "") / "model.safetensors").is_file()
needs_tiny = pytest.mark.skipif(not HAS_TINY, reason="the bundled pair has no weights yet")


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object a tool ended with."""
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tokenised questions out of the user's folders."""
    monkeypatch.setenv("GA_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "questions"))


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line with which the test of a checkpoint ends."""
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(folder), "--gpu", "cpu", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("test_checkpoint.py: error: ")]
    assert captured.err.endswith(line + "\n")
    return line


def edit_info(folder: Path, **changed: Any) -> None:
    """Change what checkpoint_info.json says."""
    path = folder / "checkpoint_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_quick_test_generates_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(checkpoint), "--gpu", "cpu"]) == 0
    told = report(capsys)
    assert told["layers"] == [1, 3]
    assert told["inference"]["text"].startswith("Hello world")
    assert told["inference"]["new_tokens"] >= 1
    assert told["formats"] == ["safetensors", "state_dict", "model"]
    assert told["verified_files"] == 0
    assert "evaluation" not in told


def test_a_quick_test_tells_speed_and_memory(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    assert main(["--checkpoint", str(checkpoint), "--gpu", "cpu", "--dtype", "bfloat16"]) == 0
    seconds = time.perf_counter() - began
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    speed = told["speed"]
    assert told["dtype"] == "bfloat16"
    assert speed["weights_bytes"] == 2 * told["parameters"]
    assert speed["weights_bytes"] < speed["peak_memory_bytes"] < 1 << 36
    assert speed["compile_seconds"] is None  # on a CPU
    # Both were really run, in the time that the test took.
    assert speed["prompt_tokens"] / speed["prefill_tokens_per_second"] < seconds
    assert speed["new_tokens"] / speed["decode_tokens_per_second"] < seconds
    assert speed["prefill_tokens_per_second"] > speed["decode_tokens_per_second"]
    table = [line.split() for line in captured.err.splitlines() if line.startswith("  ")]
    assert [words[0] for words in table] == ["prefill", "decode", "memory"]


def test_decoding_is_measured_compiled_where_that_works(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_preparation import decoding
    from model_preparation.speed import measure

    def without_compiler(*_: Any) -> None:
        raise OSError("no gcc\nfor you")

    def with_backend(backend: Any) -> None:
        torch._dynamo.reset()
        monkeypatch.setattr(decoding, "compile_step", lambda **_: compile_step(backend=backend))

    compile_step, model = decoding.compile_step, load_model(checkpoint)[0]
    with_backend("eager")
    speed = measure(model, compiled=True)
    assert speed.new_tokens == 64
    assert speed.compile_seconds is not None
    assert f"64 tokens, compiled in {speed.compile_seconds:.0f} s" in speed.table("cpu")
    assert "compiling the decoding of texts of up to 96 tokens" in capsys.readouterr().err
    with_backend(without_compiler)
    speed = measure(model, compiled=True)
    assert speed.compile_seconds is None
    assert speed.decode_tokens_per_second > 0
    assert "cannot be compiled here" in capsys.readouterr().err
    torch._dynamo.reset()


def test_what_an_invented_language_is_is_said(checkpoint: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, told in ((checkpoint, False), (copy, True)):
        if told:
            edit_info(folder, pair="tiny")
        assert main(["--checkpoint", str(folder), "--gpu", "cpu"]) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("'Hello world' continues")]
        assert line.endswith(" (tiny speaks an invented language)") == told


def test_checkpoints_without_pickled_files_are_whole(
    pair_name: str, layers_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_preparation.create_replaced_model_checkpoint import main as create

    made = tmp_path / "made"
    options = ["--pair", pair_name, "--llama_layers_dir", str(layers_dir), "--layers", "1"]
    assert create([*options, "--output_dir", str(made), "--formats", "safetensors"]) == 0
    assert not list(made.glob("*.pt"))
    capsys.readouterr()
    assert main(["--checkpoint", str(made), "--gpu", "cpu", "--verify"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["formats"] == ["safetensors"]
    assert told["verified_files"] == len(json.loads((made / "checkpoint_info.json").read_text())["files"])
    assert f"{made}: safetensors; {told['verified_files']} files are what was written" in captured.err


@pytest.mark.parametrize("name", ["config.json", "modeling_llamba.py", "tokenizer/tokenizer.json", "model.pt"])
def test_verifying_finds_what_a_quick_test_does_not(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((copy / name).read_bytes())
    if name == "model.pt":
        content[len(content) // 2] ^= 1  # in the midst of some tensor
    else:
        content += b" \n"
    (copy / name).write_bytes(content)
    assert main(["--checkpoint", str(copy), "--gpu", "cpu"]) == 0
    capsys.readouterr()
    line = refused(copy, capsys, "--verify")
    assert f"{copy}: {name} differ from what was written" in line


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "lists no checksums"),
        ({"../outside": "00"}, "it lists '../outside'"),
        ({"/etc/passwd": "00"}, "it lists '/etc/passwd'"),
        ({"gone.py": "00", "model.pt": "00", "lost.py": "00"}, "gone.py, lost.py are missing"),
    ],
)
def test_lists_of_files_that_cannot_be_verified(
    files: dict[str, str], told: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_info(copy, files=files)
    assert told in refused(copy, capsys, "--verify")


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_shard_is_named(how: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(copy)[0].save_pretrained(copy, max_shard_size="20KB")
    (copy / "model.safetensors").unlink(missing_ok=True)
    edit_info(copy, files={})
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    damage(copy, shard.name, how)
    line = refused(copy, capsys)
    assert str(shard) in line
    assert ("is missing, one of" if how == "gone" else "is damaged or cut short") in line


@pytest.mark.parametrize("folder", [".", "tokenizer"])
def test_a_missing_tokenizer_is_named(folder: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_info(copy, files={})
    for path in (copy / folder).glob("tokenizer*.json"):
        path.unlink()
    assert f"there is no tokenizer in {copy / folder}; copy the" in refused(copy, capsys)


def test_a_checkpoint_of_a_newer_version_says_so(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_info(copy, format=99, novelty=True)
    assert "has format 99, from a newer GA Layer Search than this one" in refused(copy, capsys)


def test_too_little_memory_for_an_evaluation_is_one_line_with_the_next_step(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation import lm_results
    from model_preparation import scoring

    def evaluate(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20000000000 bytes.\n")

    monkeypatch.setattr(scoring, "load_tasks", lambda *_: None)
    monkeypatch.setattr(lm_results, "run_lm_eval", evaluate)
    line = refused(checkpoint, capsys, "--full_eval", "--tasks", "tiny", "--batch-tokens", "600")
    assert line.endswith("out of memory on cpu while answering with 600 tokens at a time; give --batch-tokens 300")


def damage(folder: Path, name: str, how: str) -> None:
    """Spoil one file of a checkpoint."""
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.pt", "model_state_dict.pt", "config.json", "checkpoint_info.json"]
)
def test_a_damaged_file_is_named_in_one_line(
    name: str, how: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy, name, how)
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name.split(".")[0] in error or "holds no weights" in error


def test_files_of_two_models_are_told_apart(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(copy / "model_state_dict.pt")
    state["backbone.layers.1.mlp.up_proj.weight"] += 1
    torch.save(state, copy / "model_state_dict.pt")
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    assert "differ in backbone.layers.1.mlp.up_proj.weight" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_numbers_are_named(value: float, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(copy / "model.safetensors")
    state["backbone.embedding.weight"][-1, -1] = value  # of a word that no test says
    state["backbone.layers.2.mlp.up_proj.weight"][-1] = value
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    line = refused(copy, capsys)
    assert "the tensor backbone.embedding.weight holds values that are not numbers in float32 (in all 2 do)" in line


def test_numbers_too_large_for_a_dtype_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(copy / "model.safetensors")
    state["backbone.layers.2.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    line = refused(copy, capsys, "--dtype", "float16")
    assert "backbone.layers.2.mlp.up_proj.weight holds values that are not numbers in float16" in line
    assert "give another --dtype" in line


@needs_tiny
def test_the_score_of_a_checkpoint_is_that_of_its_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_preparation.create_replaced_model_checkpoint import main as create
    from model_preparation.extract_layers import main as extract

    layers = ["--llama_layers_dir", str(tmp_path / "layers")]
    assert extract(["--pair", "tiny", "--output_dir", str(tmp_path / "layers")]) == 0
    assert create([*layers, "--layers", "0", "2", "--output_dir", str(tmp_path / "made")]) == 0
    evaluate = ["--checkpoint", str(tmp_path / "made"), "--full_eval", "--limit", "20", "--gpu", "cpu"]
    assert main([*evaluate, "--output_path", str(tmp_path / "scores")]) == 0
    made = report(capsys)["evaluation"]
    folder = tmp_path / "scores" / "made"
    assert made["files"] == str(folder)
    assert len(list(folder.glob("samples_tiny_*.jsonl"))) == 4
    [results] = folder.glob("results_*.json")
    assert json.loads(results.read_text())["groups"]["tiny"]["acc,none"] == pytest.approx(made["accuracy"])
    command = ["--pair", "tiny", "--layers", "2", "0", "--limit", "20", "--gpu_id", "cpu"]
    assert combination_tool.main(command) == 0
    beside = report(capsys)
    assert made["questions"] == 80
    assert made["accuracy"] == beside["combination"]["accuracy"]
    assert beside["gain"] == pytest.approx(made["accuracy"] - beside["base"]["accuracy"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--limit", "3"], "are about --full_eval"),
        (["--output_path", "scores"], "are about --full_eval"),
        (["--gpu", "foo"], "--gpu foo is no device"),
        (["--full_eval", "--mmlu-dir", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: list[str], told: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("test_checkpoint.py", main, ["--checkpoint", str(checkpoint), *arguments]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("layers", "told"), [(["9"], "layer 9 does not exist"), (["1", "1"], "more than once")])
def test_a_combination_that_cannot_be(
    layers: list[str], told: str, pair_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("combination", combination_tool.main, ["--pair", pair_name, "--layers", *layers]) == 2
    assert told in capsys.readouterr().err


def test_tools_run_as_files_from_their_own_folder(
    checkpoint: Path, pair_name: str, layers_dir: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    relative = os.path.relpath(tmp_path / "made", ROOT / "model_preparation")
    tool = ["create_replaced_model_checkpoint.py", "--pair", pair_name, "--llama_layers_dir", str(layers_dir)]
    done = subprocess.run(
        [sys.executable, *tool, "--output_dir", relative, "--layers", "0"],
        cwd=ROOT / "model_preparation",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 3}'),
        ("generation_config.json", "{"),
        ("generation_config.json", None),
        ("checkpoint_info.json", '{"pair": 5}'),
    ],
)
def test_a_damaged_small_file_is_one_clear_line(
    name: str, content: str | None, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / name
    if content is None:
        path.unlink()
    elif name == "checkpoint_info.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(content)))
    else:
        path.write_text(content)
    assert run_tool("test", main, ["--checkpoint", str(copy), "--gpu", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(copy) in error


def test_a_gpu_by_number_is_the_cpu_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_preparation.scoring import Device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device.choose("0").name == "cpu"
    assert capsys.readouterr().err == "GPU 0: there is no GPU that torch can use; running on the CPU\n"


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_preparation.device import Device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(Device.choose("1")) == "cuda:1 in bfloat16"
    assert str(Device.choose("auto", "float16")) == "cuda:0 in float16"
    for gpu, told in (("2", "has GPUs 0 to 1; give another number"), ("-1", "is no device"), ("²", "is no device")):
        with pytest.raises(EvaluationError, match=told):
            Device.choose(gpu)
