"""Searches over the simulator, and their reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genetic_algorithm import Answers, LayerSet, Search, SearchConfig, result
from genetic_algorithm.donor import ask_donor
from genetic_algorithm.progress import best_so_far
from genetic_algorithm.report.data import collect
from genetic_algorithm.report.page import render
from genetic_algorithm.report.reading import RunDocuments
from genetic_algorithm.report.track import Track
from genetic_algorithm.run_folder import RunPaths
from tests.genetic_algorithm.simulator import Simulator

CONFIG = SearchConfig(population=8, generations=4, fast_limit=10, full_limit=40, kept=6, max_passes=12)
SUBJECTS = ("recall", "knowledge", "two hop", "position")
EVALUATOR = {"pair": "tiny", "tasks": ["tiny"]}
_VOID = {"meta", "link", "br", "img", "hr", "input"}


class WithDivergence(Simulator):
    """Divergences, too: small where the margin is large."""

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        for layers, answers in super().answers(batch, questions):
            assert answers.margin is not None
            yield layers, answers._replace(divergence=np.log1p(np.exp(-answers.margin)))


class Deep(Simulator):
    """As many layers as one likes; those beyond the simulator's do nothing."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(0, per_subject=60)
        self.num_layers = num_layers

    def all_answers(self, layers: LayerSet) -> Answers:
        return super().all_answers(LayerSet(tuple(i for i in layers if i < 12)))


class Told:
    """A search, step by step, and its report at any time."""

    def __init__(
        self,
        config: SearchConfig = CONFIG,
        evaluator: Simulator | None = None,
        *,
        broken: Sequence[str] = (),
        names: Sequence[str] = SUBJECTS,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.evaluator = evaluator or Simulator(0, per_subject=60)
        self.config, self.names, self._broken = config, names, broken
        space = config.space(self.evaluator.num_layers)
        self.search = Search(config, space, self.evaluator.subjects, weights=weights)
        self.track, self.done, self.requests = Track(), 0, list[tuple[tuple[LayerSet, ...], bytes]]()

    def step(self) -> bool:
        """Answer one request; False when there is none."""
        request = self.search.ask()
        if request is None:
            return False
        self.requests.append((request.batch, request.questions.tobytes()))
        answers = dict(self.evaluator.answers(request.batch, request.questions))
        self.search.tell({layers: given for layers, given in answers.items() if str(layers) not in self._broken})
        self.done += request.size
        self.track.note(request, self.done, float(self.done), best_so_far(self.search.ledger))
        return True

    def finish(self) -> Told:
        """Answer all requests, and those to the donor."""
        while self.step():
            pass
        self.search.outcome.donor = ask_donor(self.search, self.evaluator)
        return self

    def document(self, outcome: Any = None, *, seconds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The result document."""
        made = result.document(
            outcome or self.search.outcome,
            run={"versions": {"python": "3"}, "conditions": {"split": "test"}},
            seconds=seconds or {},
            subjects=self.evaluator.subjects,
            subject_names=self.names,
        )
        return dict(json.loads(json.dumps(made)))

    def documents(self, *, is_over: bool, folder: Path = Path("/runs/mine"), **config: Any) -> RunDocuments:
        """What a run folder would hold."""
        told = None if is_over else partial(self.document, seconds={})
        data = json.loads(json.dumps(collect(self.search, self.track, told), allow_nan=False))
        run = {"evaluator": EVALUATOR, "search": json.loads(json.dumps(vars(self.config)))}
        whole = {"timestamp": "20260102_030405", "command": ["run_search", "--pair", "tiny"], "run": run, **config}
        found = self.document() if is_over else data["result"]
        return RunDocuments(RunPaths(folder, "20260102_030405"), whole, found, data, is_over)

    def page(self, *, is_over: bool = True, **config: Any) -> str:
        """The report."""
        return render(self.documents(is_over=is_over, **config))


class Page(HTMLParser):
    """A page taken apart; what is not well formed fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words, whatever they stand in."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def every(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of each element of that name."""
        return [attributes for tag, attributes in self.tags if tag == name]
