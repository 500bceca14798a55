"""Answers questions for layer sets, on one device: what a search asks.

What is run is planned once for each list of questions (plan.py), whatever sets are asked, and run by scoring.py.

Suffixes: S layer sets, Q asked questions, C choices.
"""

from __future__ import annotations

import logging
import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.judge import judge, log_softmax
from evaluation.memory import LEAST_TOKENS, TOKENS
from evaluation.plan import Plan, make_plan
from evaluation.questions import QuestionSet
from evaluation.scoring import score, score_each
from evaluation.walk import distinct
from genetic_algorithm import Answers, LayerSet
from models.hybrid import HybridPair
from models.packed.choose import choose_kernels
from models.packed.donors import ResidentDonors
from models.packed.layers import PackedLayers

PLANS_KEPT = 256
"""Of 128 questions each, as the journal asks for, these are all of MMLU twice; some megabytes on the device."""

_FILLED = 0.8
"""Of a batch by questions of mean length, so that those of most chunks fit into one: of 512 questions of the tiny pair
35 batches come so instead of 27, and at 0.9 it were 53; a candidate takes 1.4 % and 3.3 % longer (2 CPU cores)."""
_log = logging.getLogger(__name__)
_VERSIONS = ("torch", "transformers", "tokenizers", "lm_eval")


class Engine:
    """An Evaluator that runs the models of a pair on its own device."""

    def __init__(
        self,
        pair: HybridPair,
        questions: QuestionSet,
        *,
        layers: PackedLayers | None = None,
        batch_tokens: int | None = None,
        about: Mapping[str, Any] | None = None,
        memory: str = "",
        with_divergence: bool = True,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Take a loaded pair and the questions; nothing runs yet.

        Args:
            pair: The models.
            questions: All questions that can be asked.
            layers: Their layers as they are to be run; None for the fastest kernels there are, all layers resident.
            batch_tokens: Most tokens in one forward pass; None for what suits the device.
            about: What else shapes an answer (names and fingerprints of the weights), for `fingerprint`.
            memory: Where the layers are, in words.
            with_divergence: Ask the donor, too, once for each list of questions, and tell how far the answers are from
                its own.
            weights: Of each question in a score, [Q]; None for all alike. They shape no answer.
        """
        self.pair = pair
        self.questions = questions
        self.weights = weights
        if layers is None:
            kernels = choose_kernels(pair.device, pair.dtype, pair.model.config, pair.donor_config)
            layers = PackedLayers.of_pair(pair, kernels, ResidentDonors)
        self.layers = layers
        self.batch_tokens = batch_tokens or default_batch_tokens(pair.device)
        self.layer_calls = 0
        """Layers run so far for `answers`, one for each batch of questions; the donor's own pass apart."""
        self._about = dict(about or {})
        self._memory = memory
        self._with_divergence = with_divergence
        self._donor: dict[bytes, NDArray[np.float64]] = {}
        self._seconds_per_question: float | None = None
        self._plans: dict[tuple[bytes, int, bool], Plan] = {}

    @property
    def num_layers(self) -> int:
        """Depth of base and donor."""
        return self.pair.depth

    @property
    def num_questions(self) -> int:
        """How many questions there are in all."""
        return len(self.questions)

    @property
    def subjects(self) -> NDArray[np.int64]:
        """Subject of each question, an index into `subject_names`."""
        return self.questions.subjects_Q

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Of each question, those of all its rows: what asking it costs, beside other questions."""
        rows = self.questions.first_row_Q1
        return np.add.reduceat(self.questions.lengths_R, rows[:-1]).astype(np.float64)

    @property
    def least_questions(self) -> int | None:
        """How many questions keep the device busy; None for those of a whole slice.

        A multiple of them, from the first of a list on, has the answers that it has within the list, to the last bit:
        several workers share a list out so.
        """
        return None if self._chunk_questions is None else self._chunk_questions * torch.get_num_threads()

    @property
    def _chunk_questions(self) -> int | None:
        """Questions of a batch on a CPU, each core of which takes batches of its own; a GPU's fill a slice."""
        if self.pair.device.type != "cpu":
            return None
        return max(1, int(_FILLED * self.batch_tokens / self.tokens.mean()))

    @property
    def subject_names(self) -> tuple[str, ...]:
        """lm-eval's name of each subject."""
        return self.questions.subject_names

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes an answer, as JSON values; rounding by batch size or threads left out."""
        return {
            **self._about,
            "dtype": self.dtype_name,
            "device": self.pair.device.type,
            "kernels": self.layers.kernels.name,
            "subjects": list(self.subject_names),
            **self.questions.about,
            "num_questions": self.num_questions,
            "questions": self.questions.digest,
            "versions": {name: metadata.version(name) for name in _VERSIONS},
        }

    @property
    def dtype_name(self) -> str:
        """Of the matrix products: float32, bfloat16, or fp8 for 8 bits within bfloat16."""
        return "fp8" if self.layers.is_quantised else str(self.pair.dtype).removeprefix("torch.")

    @property
    def setting(self) -> str:
        """On what the engine runs, in words."""
        device = self.pair.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
        parts = (f"{device} ({name})", self.dtype_name, f"kernels: {self.layers.kernels.name}", self._memory)
        return "; ".join(part for part in parts if part)

    @property
    def seconds_per_question(self) -> float:
        """Seconds for one question of one set that shares nothing, timed on the base at first use."""
        if self._seconds_per_question is None:
            tokens_each = len(self.questions.tokens_N) / self.num_questions
            count = min(self.num_questions, max(32, int(self.batch_tokens / tokens_each)))
            picked = np.unique(np.linspace(0, self.num_questions - 1, count).astype(np.int64))
            times = []
            for _ in range(3):  # the first warms up
                began = time.perf_counter()
                self._scores([LayerSet(())], picked)
                times.append(time.perf_counter() - began)
            self._seconds_per_question = min(times[1:]) / len(picked)
        return self._seconds_per_question

    @property
    def _everything(self) -> LayerSet:
        """The donor itself."""
        return LayerSet(tuple(range(self.num_layers)))

    def describe(self) -> dict[str, Any]:
        """Where and on what the engine runs, for a person to read; memory is measured by running a batch."""
        device = self.pair.device
        cuda = device.type == "cuda"
        self.seconds_per_question  # noqa: B018 - runs a full batch, whose memory is then known
        peak_bytes = torch.cuda.max_memory_allocated(device) if cuda else _peak_resident_bytes()
        return {
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if cuda else _processor_name(),
            "threads": torch.get_num_threads(),
            "peak_memory_gib": round(peak_bytes / 2**30, 2),
            "dtype": self.dtype_name,
            "kernels": self.layers.kernels.name,
            "memory": self._memory.removeprefix("memory: "),
            "batch_tokens": self.batch_tokens,
            "layers": self.num_layers,
            "questions": self.num_questions,
            "subjects": len(self.subject_names),
            "tokens": len(self.questions.tokens_N),
        }

    def answers(self, batch: Sequence[LayerSet], questions: NDArray[np.int64]) -> Iterator[tuple[LayerSet, Answers]]:
        """Yield each distinct set of `batch` with its answers to `questions` (indices).

        All sets walk through one batch of questions before the next begins. On a CPU each is yielded as soon as it is
        through, so that of a list that fits into one batch no answer waits for the others.

        Raises:
            EvaluationError: for a layer or question out of range; when the device's memory is too small;
                after all other sets, when a set gives scores that are not numbers.
        """
        sets = self._checked(batch)
        asked = self._checked_questions(questions)
        if not sets or not len(asked):
            empty = np.zeros(0, dtype=np.float32)
            yield from ((layers, Answers(empty.astype(np.bool_), empty, empty)) for layers in sets)
            return
        donor_QC, known = None, list[tuple[LayerSet, NDArray[np.float64]]]()
        if self._with_divergence:
            of_donor_QC = self._donor_scores(asked)
            donor_QC = log_softmax(of_donor_QC)
            known = [(layers, of_donor_QC) for layers in sets if layers == self._everything]
        others = [layers for layers in sets if donor_QC is None or layers != self._everything]
        broken = set[LayerSet]()
        for layers, scores_QC in chain(self._each_scored(others, asked), known):
            if np.isnan(scores_QC).any():
                broken.add(layers)
            else:
                plan = self._plan(asked, log_probs=False)
                yield layers, judge(scores_QC, plan.gold_QC, plan.absent_QC, donor_QC)
        if broken:
            named = ", ".join(str(layers) for layers in sets if layers in broken)
            raise EvaluationError(
                f"layers {named} give scores that are not numbers; check the weights, or try another --dtype"
            )

    def log_probs(self, layers: LayerSet, questions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probabilities of the choices as lm-eval gives them, [Q, C] in nats; -inf where a choice is absent."""
        asked = self._checked_questions(questions)
        return self._scores(self._checked([layers]), asked, log_probs=True)[1][0]

    def _checked(self, batch: Sequence[LayerSet]) -> list[LayerSet]:
        sets = distinct(batch)
        for layers in sets:
            if layers.indices and layers.indices[-1] >= self.num_layers:
                within = f" of {layers}" if len(layers) > 1 else ""
                last = self.num_layers - 1
                raise EvaluationError(
                    f"layer {layers.indices[-1]}{within} does not exist; the model has layers 0 to {last}"
                )
        return sets

    def _checked_questions(self, questions: NDArray[np.int64]) -> NDArray[np.int64]:
        asked = np.asarray(questions, dtype=np.int64)
        if len(asked) and not 0 <= asked.min() <= asked.max() < self.num_questions:
            raise EvaluationError(
                f"questions {asked.min()} to {asked.max()} are asked; there are 0 to {self.num_questions - 1}"
            )
        return asked

    def _donor_scores(self, asked: NDArray[np.int64]) -> NDArray[np.float64]:
        """The donor's scores of the choices, [Q, C]; asked once for each list of questions.

        Not once for each question: packed among others an answer may differ in its last bits, and what an engine gives
        must not depend on what it was asked before. A search that is resumed, or has several workers, asks another.
        """
        key = asked.tobytes()
        if key not in self._donor:
            while len(self._donor) >= PLANS_KEPT:
                del self._donor[next(iter(self._donor))]
            scores_QC = self._scores([self._everything], asked)[1][0]
            if np.isnan(scores_QC).any():
                raise EvaluationError("the donor gives scores that are not numbers; check its weights and --dtype")
            self._donor[key] = scores_QC
        return self._donor[key]

    def _plan(self, asked: NDArray[np.int64], log_probs: bool) -> Plan:
        """A search asks the same questions over and over: the last plans are kept."""
        key = (asked.tobytes(), self.batch_tokens, log_probs)
        if key not in self._plans:
            while len(self._plans) >= PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = make_plan(
                self.questions,
                asked,
                batch_tokens=self.batch_tokens,
                vocab_size=self.pair.model.config.vocab_size,
                device=self.pair.device,
                log_probs=log_probs,
                chunk_questions=self._chunk_questions,
            )
        return self._plans[key]

    def _each_scored(
        self, sets: Sequence[LayerSet], asked: NDArray[np.int64]
    ) -> Iterator[tuple[LayerSet, NDArray[np.float64]]]:
        """Sets with their scores that rank the choices, [Q, C], as they come; their layer calls are counted."""
        if not sets:
            return
        before = self.layers.calls
        try:
            if self.pair.device.type == "cpu":
                plan = self._plan(asked, log_probs=False)
                yield from ((sets[i], scores_QC) for i, scores_QC in score_each(self.layers, plan, sets))
            else:  # all are there at the end, and may have to run again in less memory
                yield from zip(sets, self._scores(sets, asked)[1], strict=True)
        finally:
            self.layer_calls += self.layers.calls - before

    def _scores(
        self, sets: Sequence[LayerSet], asked: NDArray[np.int64], *, log_probs: bool = False
    ) -> tuple[Plan, NDArray[np.float64]]:
        """Scores that rank the choices, [S, Q, C]: summed log-probabilities, or logits where they rank alike.

        Where the memory of the device is too small, with fewer tokens at a time from then on.
        """
        largest = self.batch_tokens
        while True:
            try:
                plan = self._plan(asked, log_probs)
                largest = max(len(batch.tokens_N) for batch in plan.batches)
                return plan, score(self.layers, plan, sets)
            except torch.OutOfMemoryError as error:
                if min(largest, self.batch_tokens) <= LEAST_TOKENS:
                    raise EvaluationError(
                        f"out of memory on {self.pair.device} even with {largest} tokens at a time; stop what else "
                        "runs there, or take another device"
                    ) from error
            # Only here, the exception and all that its frames held being gone, is there memory to give back.
            self.batch_tokens = max(LEAST_TOKENS, min(self.batch_tokens, largest) // 2)
            self._plans.clear()
            if self.layers.branch_bytes is not None:
                self.layers.branch_bytes //= 2  # more of the branches wait in host memory
            if self.pair.device.type == "cuda":
                torch.cuda.empty_cache()
            _log.warning("out of memory on %s: going on with %d tokens at a time", self.pair.device, self.batch_tokens)


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a batch that suit the device."""
    return TOKENS["cpu" if device.type == "cpu" else "resident"]


def _peak_resident_bytes() -> int:
    """Most memory this process has had; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
