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


def test_float32_decisions_are_those_of_the_cpu(tmp_path: Path) -> None:
    """All but ties, to 1e-3 nats."""
    asked = np.arange(256)
    expected = dict(engine(tmp_path).answers(SETS, asked))
    for layers, answers in engine(tmp_path, device="cuda:0").answers(SETS, asked):
        margin = expected[layers].margin
        assert margin is not None
        differ = answers.correct != expected[layers].correct
        assert not (differ & (np.abs(margin) > 1e-3)).any()


def test_bfloat16_flips_few_decisions(tmp_path: Path) -> None:
    """Of the recovered sets, that is: those that guess, guess otherwise."""
    asked = np.arange(256)
    good = SETS[-2:]
    expected = dict(engine(tmp_path).answers(good, asked))
    for layers, answers in engine(tmp_path, device="cuda:0", dtype="bfloat16").answers(good, asked):
        assert (answers.correct != expected[layers].correct).mean() <= 0.04


def test_answers_do_not_depend_on_company(tmp_path: Path) -> None:
    gpu = engine(tmp_path, device="cuda:0")
    asked = np.arange(256)
    together = dict(gpu.answers(SETS, asked))
    for layers in SETS:
        ((_, alone),) = gpu.answers([layers], asked)
        assert (alone.correct == together[layers].correct).all()
