"""The parts of benchmarks/engine.py: each measures one thing and prints it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import median

import numpy as np
import torch
from engine_bench import Bench, batch_sizes, mark_kernels, new_engine
from engine_products import timed
from engine_profile import profile_runs, table
from engine_reference import ask_lm_eval
from numpy.typing import NDArray
from serving import say

from evaluation.engine import Engine
from genetic_algorithm import Answers, LayerSet, SearchSpace

STREAMED_GB = 20
"""What the streamed mode is to do with, all of the process's memory on the device counted."""


def one_limited(bench: Bench) -> None:
    """One candidate, a few questions of each subject."""
    for mode in bench.modes:
        bench.measure("one-limit10", mode, [bench.candidate], bench.args.limit, of="one candidate")


def population(bench: Bench) -> None:
    """Random sets together."""
    for mode in bench.modes:
        bench.measure("population", mode, random_sets(bench), bench.args.limit, of="population of 20")


def neighbours(bench: Bench) -> None:
    """All sets that differ from the candidate in one layer, together: what a local search asks."""
    others = [i for i in range(bench.depth) if i not in bench.candidate]
    sets = [bench.candidate.swap(old, new) for old in bench.candidate for new in others]
    for mode in bench.modes:
        told = f"{len(sets)} one-swap neighbours of {bench.candidate}"
        bench.measure("neighbours", mode, sets, bench.args.limit, of=told)


def pairs(bench: Bench) -> None:
    """All sets of two, together."""
    sets = [LayerSet(chosen) for chosen in combinations(range(bench.depth), 2)]
    for mode in bench.modes:
        bench.measure("pairs", mode, sets, bench.args.pairs_limit or bench.args.limit, of=f"all {len(sets)} pairs")


def one_full(bench: Bench) -> None:
    """One candidate, all questions."""
    for mode in bench.modes:
        bench.measure("one-full", mode, [bench.candidate], bench.args.full, of="one candidate")


def five_shot(bench: Bench) -> None:
    """One candidate, each question after five solved ones, beside the same without."""
    if bench.questions(5).digest == bench.questions(0).digest:
        say("5-shot: these tasks take no examples")
        return
    for mode in bench.modes:
        for work, limit in (("one-limit10", bench.args.limit), ("one-full", bench.args.full)):
            row = bench.measure(
                f"five-shot-{work}", mode, [bench.candidate], limit, shots=5, of="one candidate, 5-shot"
            )
            same = [r for r in bench.results["rows"] if (r["work"], r["mode"]) == (work, mode)]
            for zero in same[-1:]:
                row["ratio"] = row["seconds_each"] / zero["seconds_each"]
                say(f"5-shot takes {row['ratio']:.3f} times as long as 0-shot, {mode}")


def hflm(bench: Bench) -> None:
    """The candidate through lm-eval's own model class, at several batch sizes."""
    limit, (first, *others) = bench.args.limit, bench.args.hflm_batch
    ask_lm_eval(bench.lm_eval(first), bench.pair, LayerSet(()), 1)  # warms up
    for batch, asked in ((first, limit), *(((first, bench.args.full),) * bench.args.hflm_full)):
        bench.results[f"hflm_{'limited' if asked == limit else 'full'}_seconds"] = ask(bench, batch, asked)
    for batch in others:
        ask(bench, batch, limit)


def ask(bench: Bench, batch: int, limit: int | None) -> float:
    """Seconds of lm-eval for the candidate, once; its answers are kept for `flips`."""
    theirs = bench.theirs[batch, limit] = ask_lm_eval(bench.lm_eval(batch), bench.pair, bench.candidate, limit)
    told = "all questions" if limit is None else f"limit {limit}"
    say(f"lm-eval's HFLM, batch {batch}, {told}: {theirs.seconds:.2f} s")
    return theirs.seconds


def hflm_five_shot(bench: Bench) -> None:
    """The same after five solved questions."""
    first, limit = bench.args.hflm_batch[0], bench.args.limit
    theirs = ask_lm_eval(bench.lm_eval(first, shots=5), bench.pair, bench.candidate, limit)
    say(f"lm-eval's HFLM, batch {first}, 5-shot, limit {limit}: {theirs.seconds:.2f} s")
    bench.results["hflm_five_shot_seconds"] = theirs.seconds


def flips(bench: Bench) -> None:
    """Decisions against lm-eval's, against the engine's own at other batch sizes and in other company, and of fp8."""
    flips_between(bench, bench.args.limit)
    for mode in bench.modes:
        flips_within(bench, mode)
    if bench.args.hflm_full:
        flips_between(bench, bench.args.full)


def flips_between(bench: Bench, limit: int | None) -> None:
    """Of the candidate: the engine's ways, and lm-eval's at the batch sizes that were asked."""
    first, asked = bench.args.hflm_batch[0], bench.asked(limit)
    told = "all questions" if limit is None else f"limit {limit}"
    ours = {mode: bench.engine(mode).log_probs(bench.candidate, asked) for mode in bench.modes}
    found = {batch: way for (batch, at), way in bench.theirs.items() if at == limit}
    theirs = {batch: way.log_probs(bench.questions(0), asked) for batch, way in found.items()}
    if first in theirs:
        for mode, own_QC in ours.items():
            bench.flips(f"{mode} against HFLM batch {first}, {told}", theirs[first], own_QC)
        for batch in set(theirs) - {first}:
            bench.flips(f"HFLM batch {batch} against HFLM batch {first}, {told}", theirs[first], theirs[batch])
    if len(ours) == 2:
        bench.flips(f"fp8 against {bench.full_name}, {told}", ours[bench.full_name], ours["fp8"])


def flips_within(bench: Bench, mode: str) -> None:
    """Of the engine against itself."""
    engine, asked, sets = bench.engine(mode), bench.asked(bench.args.limit), random_sets(bench)
    own_QC = engine.log_probs(bench.candidate, asked)
    for tokens in (engine.batch_tokens // 2, engine.batch_tokens // 5):
        other = new_engine(bench.pair, engine.questions, engine.layers, tokens)
        told = f"{mode}, {tokens} tokens at a time against {engine.batch_tokens}"
        bench.flips(told, own_QC, other.log_probs(bench.candidate, asked))
    together = bench.answers.get(("population", mode)) or dict(engine.answers(sets, asked))
    few = sets[:5]
    alone = {s: dict(engine.answers([s], asked))[s] for s in few}
    turned = dict(engine.answers(few[::-1], asked))
    for name, found in (("alone", alone), ("in another company", turned)):
        differ = same_bits(together, found)
        bench.results["flips"][f"{mode}, sets {name}"] = differ
        say(f"{mode}, {len(few)} sets {name} against in their population: {differ}")


def same_bits(together: Mapping[LayerSet, Answers], found: Mapping[LayerSet, Answers]) -> dict[str, int]:
    """How many decisions and margins are not the same."""
    pairs = [(together[layers], answers) for layers, answers in found.items()]
    return {
        "decisions_differ": int(sum(np.count_nonzero(a.correct != b.correct) for a, b in pairs)),
        "margins_differ": int(sum(np.count_nonzero(a.margin != b.margin) for a, b in pairs)),
    }


def random_sets(bench: Bench, count: int = 20) -> list[LayerSet]:
    """Distinct sets of 2 to 4 layers, the same each time."""
    space, rng = SearchSpace(bench.depth, 2, 4), np.random.default_rng(0)
    return list(dict.fromkeys(space.random(rng) for _ in range(10 * count)))[:count]


def rate(bench: Bench) -> None:
    """The products of the candidate by themselves for some seconds, then each of the base."""
    [size, *_] = batch_sizes(bench.engine(bench.full_name), bench.asked(bench.args.limit))
    for mode in bench.modes:
        value = bench.sustained(mode, again=True)
        shares = bench.alone(mode).each(size.tokens, bench.args.rate_seconds / 8)
        single = ", ".join(f"{name} {found / 1e12:.3f}" for name, found in shares.items())
        say(
            f"matrix products alone, {mode}, {bench.args.rate_seconds:g} s: {value / 1e12:.3f} TFLOP/s; "
            f"one after another at {size.tokens} tokens, in TFLOP/s: {single}"
        )


def profiles(bench: Bench) -> None:
    """One batch by kind of kernel, all layers the base's, then all the donor's."""
    for mode in bench.modes:
        for told, layers in (("base", LayerSet(())), ("donor", LayerSet(tuple(range(bench.depth))))):
            profile_one(bench, mode, told, layers)


def profile_one(bench: Bench, mode: str, told: str, layers: LayerSet) -> None:
    """Of as many questions as fill a batch."""
    engine, asked = bench.engine(mode), bench.asked(bench.args.limit)
    tokens = np.cumsum(engine.questions.lengths_R[engine.questions.first_row_Q1[asked]])
    few = asked[: max(1, int((tokens <= engine.batch_tokens).sum()))]
    take_back = mark_kernels(engine)
    try:
        found = profile_runs(lambda: list(engine.answers([layers], few)), bench.device)
    finally:
        take_back()
    sizes = batch_sizes(engine, few)
    bench.results.setdefault("profile", {})[f"{mode}, {told}"] = {**found.ms, "wall": found.wall_ms}
    say(
        f"\n{mode}, all {bench.depth} layers the {told}'s, {sum(s.tokens for s in sizes):,} tokens as run in "
        f"{len(sizes)} batches:\n\n{table(found, bench.depth)}\n"
    )


def slices(bench: Bench) -> None:
    """Requests as a search makes them, in slices of so many questions at most."""
    few, engines = bench.asked(bench.args.limit), [(mode, bench.engine(mode)) for mode in bench.modes]
    for asked in (few, np.setdiff1d(bench.asked(5 * bench.args.limit), few)):
        for told, sets in (("one candidate", [bench.candidate]), ("population of 20", random_sets(bench))):
            for mode, engine in engines:
                for longest in (512, 256, 128, 64):
                    seconds = _sliced_seconds(bench, engine, sets, asked, longest) / len(sets)
                    found = {"mode": mode, "sets": len(sets), "questions": len(asked), "slice": longest}
                    bench.results.setdefault("slices", []).append({**found, "seconds_each": seconds})
                    say(f"{told}, {mode}, {len(asked)} questions in slices of {longest}: {seconds:.4f} s each")


def _sliced_seconds(
    bench: Bench, engine: Engine, sets: Sequence[LayerSet], asked: NDArray[np.int64], longest: int
) -> float:
    pieces = np.array_split(asked, -(-len(asked) // longest))

    def ask() -> None:
        for piece in pieces:
            list(engine.answers(sets, piece))

    ask()  # plans are made, and kernels compiled
    return median(timed(ask, bench.device) for _ in range(bench.args.repeat))


def streaming(bench: Bench) -> None:
    """The random sets with the donor in host memory, beside the donor on the device; no other mode can follow."""
    mode, sets = bench.full_name, random_sets(bench)
    resident = [row for row in bench.results["rows"] if (row["work"], row["mode"]) == ("population", mode)]
    if not resident:
        resident = [bench.measure("population", mode, sets, bench.args.limit, of="population of 20")]
    expected = bench.answers["population", mode]
    limit = _allowed(bench)
    say(str(bench.stream(None if limit is None else int(limit))))
    _limit(bench, limit)
    row = bench.measure("population", "streamed", sets, bench.args.limit, of="population of 20")
    row["ratio"] = row["seconds_each"] / resident[-1]["seconds_each"]
    differ = same_bits(expected, bench.answers["population", "streamed"])
    reserved = torch.cuda.max_memory_reserved(bench.device) / 1e9 if bench.device.type == "cuda" else None
    row |= {"reserved_gb": reserved, "limit_gb": limit and limit / 1e9, **differ}
    say(f"streamed takes {row['ratio']:.3f} times as long as resident; {differ}; GB reserved at the peak: {reserved}")
    say(f"PyTorch was allowed {(limit or 0) / 1e9:.2f} GB: {STREAMED_GB} less what the CUDA context takes")


def _allowed(bench: Bench) -> float | None:
    """What PyTorch may have of `STREAMED_GB`, in bytes, the CUDA context taken off; None on a CPU."""
    if bench.device.type != "cuda":
        return None
    bench.release()
    free, total = torch.cuda.mem_get_info(bench.device)
    context = total - free - torch.cuda.memory_reserved(bench.device)
    return STREAMED_GB * 1e9 - min(context, 2e9)  # more than that is another process's


def _limit(bench: Bench, allowed: float | None) -> None:
    """Allow the device no more from here on, as a smaller card would."""
    if allowed is not None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info(bench.device)[1], bench.device)


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "one-limit10": one_limited,
    "rate": rate,
    "profile": profiles,
    "population": population,
    "hflm": hflm,
    "flips": flips,
    "one-full": one_full,
    "neighbours": neighbours,
    "five-shot": five_shot,
    "hflm-five-shot": hflm_five_shot,
    "pairs": pairs,
    "slices": slices,
    "streaming": streaming,
}
"""In the order in which they run: short ones first, and last the one that takes the donor off the device."""
