"""The doctor says what is there, what is missing and whether a search can run, on any machine."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation import doctor, examination
from evaluation.entry import run_tool
from evaluation.errors import EvaluationError
from evaluation.memory import Machine, Sizes
from evaluation.surroundings import TRITON, interpreter
from model_preparation.hubs import reach
from models.errors import ModelError
from models.pairs import PAIRS, Pair

ROOT = Path(__file__).resolve().parents[2]
TINY = PAIRS["tiny"]


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no environment of the user's, and a quick look at the matrix products."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the doctor needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("PAIR", "BASE", "DONOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(reach, "ask", lambda places: dict.fromkeys(places, "not in this test"))
    monkeypatch.setattr(examination, "matrix_rate", lambda *_: 2e12)


def locate(pair: Pair, role: Any) -> Path:
    return Path(pair.source(role).folder or "")


def part(report: examination.Report, name: str) -> examination.Part:
    (found,) = (part for part in report.parts if part.name == name)
    return found


def test_the_bundled_pair_is_measured_and_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--gpu", "cpu"]) == 0
    told = capsys.readouterr().out
    for name in ("scan and mixer", "attention", "norm and SwiGLU", "matrix products", "fp8", "memory"):
        assert re.search(rf"^{name} +\S", told, re.MULTILINE), told
    found = re.search(r"seconds per candidate: (\S+) \(limit 10\), (\S+) \(all questions\); measured", told)
    assert found is not None, told
    limited, whole = map(float, found.groups())
    assert 0 < limited < whole
    assert whole / limited == pytest.approx(4096 / 40, rel=0.02)
    assert told.endswith("a search can run\n")
    assert "None" not in told


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--gpu", "cpu", "--json", "--no-measure"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["can_run"] is True
    assert document["problems"] == []
    assert document["plan"]["mode"] == "cpu"
    assert document["pace"]["how"].startswith("forecast")
    assert {"torch", "triton", "lm_eval"} <= document["versions"].keys()
    assert [part["name"] for part in document["parts"]][-1] == "memory"


def test_models_that_are_not_here_are_the_reason_and_nothing_is_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--gpu", "cpu", "--pair", "hf:nobody/no-base:hf:nobody/no-donor"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("a search cannot run: base, donor")  # and the questions, where they are not here
    assert "a search and DEPLOY_TEST.sh download models" in told[-1]
    assert len(told[-1]) < 250
    for row in (line for line in told if line.startswith(("base ", "donor "))):
        assert "NEEDED, for: a search of the pair hf:nobody/no-base:hf:nobody/no-" in row
        assert f"download it with: {interpreter()} -m model_preparation.modelscope_utils" in row
    assert any(line.startswith("scan and mixer") for line in told)


def test_models_that_are_not_here_are_no_reason_where_their_hub_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        reach, "ask", lambda places: {name: None if name == "Hugging Face" else "no" for name in places}
    )
    assert doctor.main(["--gpu", "cpu", "--pair", "hf:nobody/no-base:hf:nobody/no-donor"]) == 0
    told = capsys.readouterr().out
    assert "; a search fetches it; or download it with: " in told
    assert told.endswith("a search can run\n")
    assert doctor.main(["--gpu", "cpu", "--pair", "hf:nobody/no-base:ms:nobody/no-donor"]) == 1
    assert "a search cannot run: donor missing (above, NEEDED: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: _change(folder / "config.json", d_model=64), "differ in hidden_size 64 and 128"),
    ],
)
def test_models_that_are_broken_are_the_reason(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for file in locate(TINY, "base").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    report = examination.examine(
        TINY, "cpu", lambda pair, role: folder if role == "base" else locate(pair, role), measure=True
    )
    assert [told in problem for problem in report.problems] == [True]
    assert report.pace is None


def _change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_gpu_that_is_not_there_is_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--gpu", "99"]) == 1
    assert "a search cannot run: --gpu 99: this machine has no GPU" in capsys.readouterr().out


def test_what_is_no_device_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for gpu in ("x", "-1", "²"):
        with pytest.raises(EvaluationError, match=f"--gpu {gpu} is no device; give a number, cpu or auto"):
            doctor.main([f"--gpu={gpu}"])
    assert run_tool("doctor", doctor.main, ["--pair", "nope"]) == 2
    assert capsys.readouterr().err.startswith("doctor: error: no pair is called 'nope'")


def test_too_little_memory_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(device="cpu", free_bytes=10**6, host_free_bytes=10**6)
    monkeypatch.setattr(examination, "read_machine", lambda device: machine)
    report = examination.examine(TINY, "cpu", locate, measure=True)
    assert report.plan is None
    assert len(report.problems) == 1
    assert "0.00 GB are free" in report.problems[0]


def test_questions_that_cannot_be_had_are_the_reason(tmp_path: Path) -> None:
    report = examination.examine(TINY, "cpu", locate, mmlu_dir=tmp_path, measure=True)
    assert ["is not a copy of cais/mmlu" in problem for problem in report.problems] == [True]


def test_lm_eval_that_is_missing_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "find_spec", lambda name: None)
    assert examination.examine(TINY, "cpu", locate, measure=False).problems == [
        "lm-eval is not installed; install requirements.txt"
    ]


def test_memory_that_runs_out_while_measuring_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(examination, "matrix_rate", run_out)
    assert examination.examine(TINY, "cpu", locate, measure=False).problems[0].startswith("out of memory on cpu")


def test_pytorch_without_cuda_and_a_hidden_gpu_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, hip, visible, told in (
        (None, None, None, "a GPU; PyTorch .* is built without CUDA"),
        ("13.0", None, None, "a GPU that PyTorch can use$"),
        (None, "6.4", "", "a GPU that PyTorch can use; CUDA_VISIBLE_DEVICES is ''$"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "") if visible is not None else monkeypatch.delenv(
            "CUDA_VISIBLE_DEVICES", raising=False
        )
        report = examination.examine(TINY, "auto", locate, measure=False)
        assert re.match(told, part(report, "attention").missing or "")
        assert report.problems == []


class Gpu:
    """A GPU that is only spoken of: nothing runs on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.free, self.capability, self.kernels, self.warning, self.installed = 140.0, (9, 0), "Triton", "", True
        monkeypatch.setattr(examination, "_device", lambda gpu, problems: torch.device("cuda", 0))
        monkeypatch.setattr(examination, "_describe", lambda device: "cuda:0: a GPU")
        monkeypatch.setattr(examination, "choose_kernels", self._choose)
        monkeypatch.setattr(examination, "find_spec", lambda name: self.installed or None)
        monkeypatch.setattr(examination, "has_fp8", lambda device: self.capability >= (8, 9))
        monkeypatch.setattr(examination, "read_machine", self._machine)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: self.capability)

    def _choose(self, device: torch.device, dtype: torch.dtype) -> Any:
        assert dtype == torch.bfloat16
        if self.warning:
            logging.getLogger("models.packed.choose").warning(self.warning)
        return SimpleNamespace(name=self.kernels)

    def _machine(self, device: torch.device) -> Machine:
        return Machine(device="cuda:0", free_bytes=int(self.free * 1e9), host_free_bytes=10**12)

    def report(self, **options: Any) -> examination.Report:
        return examination.examine(TINY, "0", locate, measure=False, **options)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_where_all_is_there_nothing_is_missing(gpu: Gpu) -> None:
    report = gpu.report()
    assert report.problems == []
    assert part(report, "scan and mixer").path == "Triton"
    assert part(report, "fp8").path.startswith("possible")
    assert part(report, "memory").path.startswith("resident: ")
    assert part(report, "matrix products").path == "cuBLAS, bfloat16, 2 TFLOP/s"
    assert [part.missing for part in report.parts] == [None] * 6
    assert "missing" not in report.text()


def test_triton_that_does_not_run_is_told_with_the_reason_that_was_logged(gpu: Gpu) -> None:
    gpu.kernels, gpu.warning = "plain PyTorch", "Triton does not run on\ncuda:0: no compiler"
    report = gpu.report()
    assert part(report, "attention").missing == "Triton does not run on cuda:0: no compiler"
    assert "missing: Triton does not run on cuda:0: no compiler (scan and mixer, attention, norm and" in report.text()
    assert report.problems == []
    assert not logging.getLogger("models.packed").handlers


def test_triton_that_is_not_installed_is_told(gpu: Gpu) -> None:
    gpu.kernels, gpu.installed = "plain PyTorch", False
    assert part(gpu.report(), "norm and SwiGLU").missing == f"triton is not installed; {TRITON}"


def test_an_older_gpu_has_no_fp8(gpu: Gpu) -> None:
    gpu.capability = (8, 0)
    report = gpu.report()
    assert part(report, "fp8").path == "not possible"
    assert part(report, "fp8").missing == "compute capability 8.9; this is 8.0"
    assert report.problems == []


def test_short_memory_of_the_gpu_is_told(gpu: Gpu) -> None:
    gpu.free = 0.43
    report = gpu.report()
    assert part(report, "memory").missing == "room for 16,384 tokens at a time"
    assert report.problems == []
    gpu.free = 0.2
    assert "GB of the memory of cuda:0" in gpu.report().problems[0]


def test_streaming_is_told_and_missed_only_where_it_was_not_asked_for(gpu: Gpu) -> None:
    sizes = Sizes(
        layers=32,
        base_bytes=17 * 10**9,
        donor_layer_bytes=436_000_000,
        token_bytes=100_000,
        hidden_bytes=8192,
        vocabulary=128256,
        read_bytes=10**6,
    )
    gpu.monkeypatch.setattr(examination, "sizes_of", lambda *_, **__: sizes)
    gpu.free = 24.0
    found = part(gpu.report(), "memory")
    assert found.path.startswith("streamed: ")
    assert found.missing == "room for both models on the GPU"
    assert part(gpu.report(memory="streamed"), "memory").missing is None


def test_claims_name_measurements_that_are_here() -> None:
    for claim in filter(None, examination.BRINGS.values()):
        assert re.search(r"\d", claim)
        for named in re.findall(r"benchmarks/\S+\.md", claim):
            assert (ROOT / named).exists()


def test_what_is_said_of_8b_is_what_its_page_says() -> None:
    limited, whole = "one candidate, limit 10", "one candidate, all questions"
    bf16, fp8 = (figures(limited)[i] for i in (3, -1))
    assert f"fp8 against bfloat16, both on one H200: {fp8:.2f} s and {bf16:.2f} s " in (examination.BRINGS["fp8"] or "")
    for which, work in (("limit 10", limited), ("all questions", whole)):
        assert examination.SHARE_OF_MATRIX_RATE["Triton"][which] == round(figures(f"{work}, bf16, exact")[-1], 2)


def figures(work: str) -> list[float]:
    """Of that row of the engine's page at 8B size; letters of trees and empty cells left out."""
    page = (ROOT / "benchmarks/engine-h200-2026-11.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {work}(?: \(\w\))? \|(.*)\|$", page, re.MULTILINE)
    return [float(cell) for cell in re.findall(r"\d+(?:\.\d+)?", row.replace(",", ""))]


def test_every_forecast_has_its_share(gpu: Gpu) -> None:
    tokens, shares = examination.MMLU_TOKENS, examination.SHARE_OF_MATRIX_RATE["Triton"]
    assert shares.keys() == tokens.keys()
    pace = gpu.report().pace
    assert pace is not None
    assert "at least" not in pace.how
    work = {which: pace.seconds[which] * shares[which] / tokens[which] for which in tokens}
    assert work["limit 10"] == pytest.approx(work["all questions"])


def test_of_a_large_pair_that_cannot_run_a_gpu_is_missed_as_well(tmp_path: Path) -> None:
    report = examination.examine(PAIRS["llamba-8b"], "cpu", lambda pair, role: tmp_path, measure=False)
    assert str(tmp_path) in report.problems[0]
    assert report.problems[1].startswith("no GPU is used")


def test_of_models_that_are_not_here_nothing_is_planned() -> None:
    def nowhere(pair: Pair, role: Any) -> Path:
        raise ModelError("it is nowhere")

    report = examination.examine(TINY, "cpu", nowhere, measure=True)
    assert report.problems == []
    assert part(report, "memory").path == "not planned; both models take 0.01 GB in bfloat16"
