"""The engine on a GPU gives the answers it gives on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from genetic_algorithm import LayerSet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETS = [LayerSet(()), LayerSet((2,)), LayerSet((0, 2)), LayerSet((0, 2, 4, 5)), LayerSet(tuple(range(12)))]


def engine(tmp_path: Path, **changes: str) -> Engine:
    return build_evaluator(EvalConfig(pair="tiny", cache_dir=tmp_path, **changes), max_limit=64)


@pytest.mark.parametrize(("dtype", "flips"), [("float32", 0.0), ("bfloat16", 0.03)])
def test_decisions_are_those_of_the_cpu(tmp_path: Path, dtype: str, flips: float) -> None:
    """In float32 all but ties to 1e-3 nats; in bf16 few, and none that the CPU is sure of by 1 nat."""
    asked = np.arange(256)
    expected = dict(engine(tmp_path).answers(SETS, asked))
    for layers, answers in engine(tmp_path, device="cuda:0", dtype=dtype).answers(SETS, asked):
        differ = answers.correct != expected[layers].correct
        assert expected[layers].margin is not None
        sure = np.abs(expected[layers].margin) > (1e-3 if dtype == "float32" else 1.0)
        assert not (differ & sure).any()
        if flips:
            assert differ.mean() <= flips


def test_answers_do_not_depend_on_company(tmp_path: Path) -> None:
    gpu = engine(tmp_path, device="cuda:0")
    asked = np.arange(256)
    together = dict(gpu.answers(SETS, asked))
    for layers in SETS:
        ((_, alone),) = gpu.answers([layers], asked)
        assert (alone.correct == together[layers].correct).all()
