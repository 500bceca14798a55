from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvalConfig, default_cache_dir
from evaluation.errors import EvaluationError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question_order": "random"}, "question order 'random' is unknown; give shuffled or dataset"),
        ({"dtype": "float16"}, "dtype 'float16' is unknown; give float32 or bfloat16"),
        ({"device": "gpu0"}, "device 'gpu0' is unknown; give cpu or cuda:N"),
        ({"batch_tokens": 0}, "--batch-tokens 0 is below 1"),
        ({"num_fewshot": -1}, "-1 few-shot examples make no sense"),
        ({"tasks": ("mmlu", "tiny", "mmlu")}, "task 'mmlu' is named twice in 'mmlu,tiny,mmlu'"),
        ({"tasks": ("mmlu", "")}, "a task's name is empty in 'mmlu,'"),
    ],
)
def test_values_that_do_not_fit_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        EvalConfig(**fields)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:13"])
def test_devices_are_accepted_without_looking_at_the_machine(device: str) -> None:
    assert EvalConfig(device=device).device == device


def test_cache_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GA_CACHE_DIR", str(tmp_path))
    assert EvalConfig().cache_dir == default_cache_dir() == tmp_path
    monkeypatch.delenv("GA_CACHE_DIR")
    assert EvalConfig().cache_dir == Path.home() / ".cache" / "ga_layer_search"


def test_configuration_loads_no_torch() -> None:
    code = "import sys, evaluation.config; assert 'torch' not in sys.modules and 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
