"""What the parts of benchmarks/engine.py share: the pair, its questions, its engines, and how a request is timed."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from engine_models import favour_letters, generated_pair, open_tokenizer, shapes
from engine_products import Alone, Calls, Size, calls_of, flops_asked, flops_run, shapes_of, timed
from engine_profile import Marked
from engine_reference import Theirs, compare
from numpy.typing import NDArray
from serving import say

from evaluation.build import task_source, usable_device
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from evaluation.memory import MemoryPlan, choose_plan, read_machine, sizes_of
from evaluation.plan import make_plan
from evaluation.question_cache import cached_questions
from evaluation.questions import QuestionSet, resolve_max_length
from evaluation.reference import LmEval
from evaluation.tasks import TaskSource
from genetic_algorithm import Answers, LayerSet
from genetic_algorithm.evaluator import limit_questions
from model_preparation.sources import locate
from models.hybrid import HybridPair
from models.packed.choose import choose_kernels
from models.packed.donors import ResidentDonors, StreamedDonors
from models.packed.layers import PackedLayers
from models.packed.matrices import has_fp8
from models.packed.plain import PlainKernels
from models.pairs import get_pair
from models.tokenizer import load_tokenizer

ENOUGH_SECONDS = 10.0
"""What takes so long is timed once."""

# --- all that this file knows of the engine's insides ----------------------------------------------------------------


def prepare_layers(pair: HybridPair, mode: str) -> PackedLayers:
    """A pair's layers as they are run, all on the device: `fp8`, or else in the dtype of the weights."""
    kernels = choose_kernels(pair.device, pair.dtype, pair.model.config, pair.donor_config, coarse=mode == "fp8")
    layers = PackedLayers.of_pair(pair, kernels, ResidentDonors)
    return layers.quantised() if mode == "fp8" else layers


def stream_layers(
    pair: HybridPair, longest_text: int, batch_tokens: int | None, free_bytes: int | None
) -> tuple[PackedLayers, MemoryPlan]:
    """A pair's layers, the donor's in host memory, as `--memory streamed` has them; the pair loses its donor.

    `free_bytes` for what the device is to have free, the pair's own weights gone; None for what it has.
    """
    kernels = choose_kernels(pair.device, pair.dtype, pair.model.config, pair.donor_config)
    sizes = sizes_of(
        pair.model.config,
        pair.donor_config,
        itemsize=pair.dtype.itemsize,
        fused=not isinstance(kernels, PlainKernels),
    )
    machine = read_machine(pair.device)
    machine = replace(machine, free_bytes=free_bytes or machine.free_bytes)
    plan = choose_plan(sizes, machine, batch_tokens=batch_tokens, choice="streamed", longest_text=longest_text)
    keep = partial(StreamedDonors, device=pair.device, slots=plan.slots)
    layers = PackedLayers.of_pair(pair, kernels, keep, takes_donor=True)
    layers.embed_on_host()
    layers.branch_bytes = plan.kept_bytes
    return layers, plan


def new_engine(pair: HybridPair, questions: QuestionSet, layers: PackedLayers, batch_tokens: int | None) -> Engine:
    """An engine that asks the candidates alone, not the donor."""
    return Engine(pair, questions, layers=layers, batch_tokens=batch_tokens, with_divergence=False)


def batch_sizes(engine: Engine, asked: NDArray[np.int64]) -> list[Size]:
    """The batches that the engine makes of questions."""
    plan = make_plan(
        engine.questions,
        asked,
        batch_tokens=engine.batch_tokens,
        vocab_size=engine.pair.model.config.vocab_size,
        device=torch.device("cpu"),
    )
    return [Size(len(batch.tokens_N), len(batch.layout.keep_P)) for batch in plan.batches]


def mark_kernels(engine: Engine) -> Callable[[], None]:
    """Let the engine's kernels say in a profile what they are called for; returns what takes that back."""
    before = engine.layers.kernels
    engine.layers.kernels = Marked(before)
    return lambda: setattr(engine.layers, "kernels", before)


# --- the pair, its questions and its engines -------------------------------------------------------------------------


class Bench:
    """What the parts share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = usable_device(args.device)
        self.dtype: torch.dtype = getattr(torch, args.dtype)
        self.full_name = {"bfloat16": "bf16", "float32": "fp32"}[args.dtype]
        self.results: dict[str, Any] = {"rows": [], "flips": {}, "sustained": {}}
        self.answers: dict[tuple[str, str], dict[LayerSet, Answers]] = {}
        self.theirs: dict[tuple[int, int | None], Theirs] = {}
        self._engines: dict[tuple[str, int], Engine] = {}
        self._layers: dict[str, PackedLayers] = {}
        self._questions: dict[int, QuestionSet] = {}
        self._lm_evals: dict[int, LmEval] = {}
        self._alone: dict[str, Alone] = {}
        began = time.perf_counter()
        self.pair, self.tokenizer, self.source = self._open(args)
        self.results["seconds_to_weights"] = time.perf_counter() - began
        self._bytes = {"pair": self.allocated()}
        self.depth = self.pair.depth
        self.shapes = shapes_of(self.pair.model.config, self.pair.donor_config)
        self.candidate = LayerSet((11, 13, 17, 21) if self.depth > 21 else (0, 2, 4, 5))

    def _open(self, args: argparse.Namespace) -> tuple[HybridPair, Any, TaskSource]:
        if args.pair:
            found = get_pair(args.pair)
            base, donor = locate(found, "base"), locate(found, "donor")
            source = task_source(EvalConfig(pair=args.pair, mmlu_dir=args.mmlu_dir))
            pair = HybridPair.load(base, donor, dtype=self.dtype, device=self.device)
            return pair, load_tokenizer(base, donor), source
        tokenizer = open_tokenizer(args.tokenizer or args.cache / "benchmark_tokenizer.json", args.mmlu_dir)
        base_config, donor_config = shapes(args.shapes, len(tokenizer))
        return (
            generated_pair(base_config, donor_config, self.dtype, self.device),
            tokenizer,
            TaskSource(("mmlu",), mmlu_dir=args.mmlu_dir),
        )

    def write_letters(self) -> None:
        """Give generated weights an opinion on the questions."""
        if not self.args.pair:
            questions = self.questions(0)
            rows = [questions.row(questions.first_row_Q1[q]).tolist() for q in limit_questions(questions.subjects_Q, 2)]
            favour_letters(self.pair, rows, [self.tokenizer.encode(f" {c}")[-1] for c in "ABCD"])

    @property
    def modes(self) -> list[str]:
        """The dtype of the weights; fp8 where the engine offers it."""
        offered = [self.full_name]
        if self.dtype == torch.bfloat16 and (has_fp8(self.device) or "fp8" in (self.args.modes or [])):
            offered.append("fp8")
        return [mode for mode in offered if mode in (self.args.modes or offered)]

    def questions(self, shots: int) -> QuestionSet:
        """All questions after so many examples, in the dataset's order, from the cache where it has them."""
        if shots not in self._questions:
            self._questions[shots] = cached_questions(
                replace(self.source, num_fewshot=shots),
                self.tokenizer,
                max_length=resolve_max_length(self.pair.model.config, self.tokenizer),
                order="dataset",
                limit=None,
                cache_dir=self.args.cache,
            )
        return self._questions[shots]

    def asked(self, limit: int | None) -> NDArray[np.int64]:
        """The first questions of each subject."""
        return limit_questions(self.questions(0).subjects_Q, limit)

    def engine(self, mode: str, shots: int = 0) -> Engine:
        """The engine of a mode; what it needs beside the pair is made at first use."""
        if mode not in self._layers:
            before = self.allocated()
            self._layers[mode] = prepare_layers(self.pair, mode)
            self._bytes[mode] = self.allocated() - before
        if (mode, shots) not in self._engines:
            asked = self.questions(shots)
            self._engines[mode, shots] = new_engine(self.pair, asked, self._layers[mode], self.args.batch_tokens)
        return self._engines[mode, shots]

    def stream(self, free_bytes: int | None) -> MemoryPlan:
        """Make the engine of mode `streamed`; all others go, and so does the pair's donor. See `stream_layers`."""
        self.release()
        questions = self.questions(0)
        layers, plan = stream_layers(self.pair, int(questions.lengths_R.max()), self.args.batch_tokens, free_bytes)
        self._layers["streamed"] = layers
        self._engines["streamed", 0] = new_engine(self.pair, questions, layers, plan.batch_tokens)
        self.release_cached()
        self._bytes |= {"pair": 0, "streamed": self.allocated()}
        return plan

    def lm_eval(self, batch: int, shots: int = 0) -> LmEval:
        """lm-eval with its tasks loaded, which takes long enough to be done once."""
        if shots not in self._lm_evals:
            self._lm_evals[shots] = LmEval(self.tokenizer, replace(self.source, num_fewshot=shots))
        return self._lm_evals[shots].with_batch_size(batch)

    def alone(self, mode: str) -> Alone:
        """The products of a mode."""
        if mode not in self._alone:
            self._alone[mode] = Alone(self.shapes, self.depth, self.dtype, self.device, in_8_bits=mode == "fp8")
        return self._alone[mode]

    def sustained(self, mode: str, *, again: bool = False) -> float:
        """Operations per second of one candidate's products, alone."""
        known = self.results["sustained"].setdefault(mode, [])
        if again or not known:
            sizes, calls = batch_sizes(self.engine(mode), self.asked(self.args.limit)), self.calls([self.candidate])
            known.append(self.alone(mode).sustained(calls, sizes, self.args.rate_seconds))
        return known[-1]

    def _products(self, mode: str) -> str:
        """The mode whose products those of a mode are: where layers are streamed, no memory is left to time them in."""
        return self.full_name if mode == "streamed" else mode

    def calls(self, sets: Sequence[LayerSet]) -> Calls:
        """Layers run for them."""
        return calls_of(self.depth, sets)

    def release(self) -> None:
        """Let go of all but the pair."""
        for held in (self._engines, self._layers, self._alone, self._lm_evals):
            held.clear()
        self.release_cached()

    def allocated(self) -> int:
        """Bytes of the GPU that tensors take."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def release_cached(self) -> None:
        """Give back what nothing holds."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- one row of the table ---

    def measure(
        self, work: str, mode: str, sets: Sequence[LayerSet], limit: int | None, *, shots: int = 0, of: str = ""
    ) -> dict[str, Any]:
        """Time a request; the answers are kept under `work` and `mode`."""
        engine, asked, device = self.engine(mode, shots), self.asked(limit), self.device
        self._warm_up(engine, asked)
        sizes, calls = batch_sizes(engine, asked), self.calls(sets)
        seconds, alone, before = list[float](), list[float](), self.allocated()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def ask() -> None:
            self.answers[work, mode] = dict(engine.answers(sets, asked))

        while len(seconds) < self.args.repeat and sum(seconds) < ENOUGH_SECONDS:
            seconds.append(timed(ask, device))
            if device.type == "cpu":  # in turn; a GPU's rate is steadier, see `sustained`
                alone.append(self.alone(mode).seconds(calls, sizes))
        peak = None
        if device.type == "cuda":  # what other modes keep there does not count
            own = self._bytes["pair"] + self._bytes[mode] - before
            peak = (torch.cuda.max_memory_allocated(device) + own) / 1e9
        each, run = median(seconds) / len(sets), flops_run(self.shapes, calls, sizes) / len(sets)
        tokens = int(engine.questions.lengths_R[engine.questions.first_row_Q1[asked]].sum())
        as_asked = flops_asked(self.shapes, sets, self.depth, tokens) / len(sets)
        rate = run / (median(alone) / len(sets)) if alone else self.sustained(self._products(mode))
        row = {
            "work": work,
            "mode": mode,
            "told": f"{of or work}, {'all questions' if limit is None else f'limit {limit}'}, {len(asked)} questions",
            "sets": len(sets),
            "questions": len(asked),
            "seconds_each": each,
            "seconds": seconds,
            "tokens_asked": tokens,
            "tokens_run": sum(size.tokens for size in sizes),
            "batches": len(sizes),
            "tflop_run": run / 1e12,
            "tflop_asked": as_asked / 1e12,
            "tflops_run": run / each / 1e12,
            "tflops_asked": as_asked / each / 1e12,
            "products_alone_seconds": run / rate,
            "share": run / each / rate,
            "share_asked": as_asked / each / rate,
            "peak_gb": peak,
        }
        self.results["rows"].append(row)
        times = ", ".join(f"{s:.3f}" for s in seconds)
        say(
            f"{row['told']}, {mode}: {each:.4f} s each of {len(sets)} (in all {times} s); "
            f"{tokens:,} tokens, {row['tokens_run']:,} as run in {len(sizes)} batches; {row['tflops_run']:.3f} TFLOP/s "
            f"as run, {row['tflops_asked']:.3f} as asked; products alone {row['products_alone_seconds']:.4f} s, so "
            f"{row['share']:.3f} of their rate" + ("" if peak is None else f"; peak {peak:.1f} GB")
        )
        return row

    def _warm_up(self, engine: Engine, asked: NDArray[np.int64]) -> None:
        """Ask a few questions, and of many all once: what is compiled and planned for shapes is done then."""
        few = asked[: len(self.asked(self.args.limit))]
        list(engine.answers([self.candidate], few))
        if self.device.type == "cuda" and len(asked) > len(few):
            list(engine.answers([self.candidate], asked))

    def flips(self, name: str, first_QC: NDArray[np.float64], second_QC: NDArray[np.float64]) -> None:
        """Compare the choices of two ways."""
        found = compare(first_QC, second_QC)
        self.results["flips"][name] = found.as_json()
        say(f"{name}: {found}")
