from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.forecast import forecast, matrix_rate, measured

SHAPES = [(8, 4), (4, 8)]


def test_a_forecast_is_work_over_rate() -> None:
    # 64 weights a layer, 2 operations each, 10 layers: 1,280 operations a token.
    pace = forecast(1280.0, SHAPES, 10, {"limit 10": 7, "all questions": 100}, None)
    assert pace.seconds == pytest.approx({"limit 10": 7, "all questions": 100})
    assert "at least" in pace.how


def test_a_known_share_of_the_rate_makes_it_longer() -> None:
    tokens, shares = {"limit 10": 7, "all questions": 100}, {"limit 10": 0.25, "all questions": 0.5}
    pace = forecast(1280.0, SHAPES, 10, tokens, shares)
    assert pace.seconds == pytest.approx({"limit 10": 28, "all questions": 200})
    assert "at least" not in pace.how


def test_the_rate_counts_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    real = torch.nn.functional.linear

    def counting(x: Any, weight: Any) -> Any:
        products.append(2 * x.numel() * len(weight))
        return real(x, weight)

    now = iter(np.arange(0.0, 100, 0.5))  # half a second from one look at the clock to the next
    monkeypatch.setattr("evaluation.forecast.linear", counting)
    monkeypatch.setattr("evaluation.forecast.time.perf_counter", lambda: next(now))
    rate = matrix_rate(torch.device("cpu"), torch.float32, SHAPES, tokens=3, seconds=2.0)
    one_round = 2 * 3 * 64
    assert sum(products) == 13 * one_round  # the first warms up
    assert rate == pytest.approx(12 * one_round / 2.0)


def test_even_no_time_at_all_gives_a_rate() -> None:
    assert matrix_rate(torch.device("cpu"), torch.float32, SHAPES, tokens=3, seconds=0.0) > 0


def test_what_is_measured_is_scaled_to_the_questions() -> None:
    subjects = np.repeat([0, 1, 2], [25, 3, 12])
    engine: Any = SimpleNamespace(subjects=subjects, num_questions=40, seconds_per_question=0.5)
    assert measured(engine).seconds == {"limit 10": 0.5 * (10 + 3 + 10), "all questions": 20.0}
