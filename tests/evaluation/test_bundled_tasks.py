"""The bundled questions and landscape through lm-eval's own command line and through the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from evaluation.build import build_evaluator
from evaluation.config import EvalConfig
from genetic_algorithm import LayerSet
from models.pairs import TINY_DIR, get_pair
from tests.conftest import long_one


@long_one
def test_lm_eval_s_command_line_runs_the_tasks_from_anywhere(tmp_path: Path) -> None:
    pair = get_pair("tiny")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "tiny,tiny_heldout", "--limit", "4"]
    command += ["--model_args", f"pretrained={pair.donor.folder},dtype=float32", "--include_path", str(pair.task_dir)]
    command += ["--device", "cpu", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    assert results["tiny"]["acc,none"] == results["tiny_heldout"]["acc,none"] == 1.0


def test_the_landscape_is_what_the_engine_finds(tmp_path: Path) -> None:
    """All 1,024 two-hop questions of the best set; a GPU made the file, whose rounding may turn a decision."""
    landscape = json.loads((TINY_DIR / "landscape.json").read_text())
    engine = build_evaluator(EvalConfig(pair="tiny", tasks=("tiny_two_hop",), cache_dir=tmp_path), max_limit=None)
    subject = landscape["subjects"].index("tiny_two_hop")
    asked = np.arange(engine.num_questions)
    assert len(asked) == 1024
    best = max(landscape["sets"], key=landscape["sets"].__getitem__)
    ((_, answers),) = engine.answers([LayerSet.parse(best)], asked)
    assert abs(int(answers.correct.sum()) - landscape["by_subject"][best][subject]) <= 2
