"""Real MMLU from a local folder, on the bundled pair; skipped where there is no copy of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluation.accuracy import evaluate_sets
from evaluation.build import build_evaluator, task_source
from evaluation.config import EvalConfig
from evaluation.reference import disagreements, lm_eval_answers
from genetic_algorithm import LayerSet
from models.pairs import TINY_DIR
from models.tokenizer import load_tokenizer


def test_decisions_on_mmlu_are_those_of_lm_eval(mmlu_dir: Path, tmp_path: Path) -> None:
    """Few-shot too: MMLU's examples are the first of its dev split."""
    config = EvalConfig(
        tasks=("mmlu_econometrics", "mmlu_global_facts"),
        mmlu_dir=mmlu_dir,
        num_fewshot=1,
        question_order="dataset",
        cache_dir=tmp_path,
    )
    engine, layers = build_evaluator(config, max_limit=4), LayerSet((2, 5))
    assert engine.fingerprint["num_fewshot"] == 1
    answers = lm_eval_answers(
        engine.pair.assemble(layers.indices), load_tokenizer(TINY_DIR / "base"), task_source(config), limit=4
    )
    assert disagreements(engine, layers, answers) == []
    accuracy = evaluate_sets(engine, [layers], None)[layers]
    right = np.concatenate([subject.correct for subject in answers.values()])
    assert (accuracy.total.correct, accuracy.total.asked) == (right.sum(), 8)
