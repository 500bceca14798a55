#!/usr/bin/env python
"""How fast a hybrid of Llamba-8B's shape answers: prefill, decoding beside the memory bound, and memory.

    python benchmarks/serving.py                            # one GPU of 40 GB or more, about 8 minutes
    python benchmarks/serving.py --ways eager product:8     # some ways of decoding, :BATCH
    python benchmarks/serving.py --quick --device cpu       # small shapes: does the script run

Weights are random and made on the device, so no file is read. To decode one token means to read every weight once, but
of the embedding one row: the memory bound is those bytes at the rate at which the device copies a large tensor. Every
way of decoding starts from the same prompt and is compared with the eager model; `eager-again` tells how far that is
off itself. `product` is what the tools do: each token is on the host before the next but one is begun.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, LlamaConfig, LogitsProcessorList, StaticCache
from transformers.cache_utils import Cache

from evaluation.entry import run_tool
from genetic_algorithm.run_folder import versions
from model_preparation.decoding import TUNED, Decoder, compile_step, read_prompt, run_step
from model_preparation.speed import Clock
from models.configuration_llamba import LlambaConfig
from models.modeling_llamba import LlambaForCausalLM, new_cache

DONOR_LAYERS = (11, 13, 17, 21)
EACH = ("eager", "eager-again", "product", "tuned", "generate")
TURNS = (*EACH, *(f"{way}:8" for way in EACH), "generate-tuned")
CHECKED = 16
"""Tokens compared with the eager model's before the timing."""
Step = Callable[[Tensor], Tensor]
"""[B, 1] tokens -> logits [B, V] of the next ones."""
Found = list[tuple[Tensor, Tensor]]
"""Tokens [B, 1] with the logits [B, V] that they are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is measured."""

    prompt: int = 2048
    """Tokens before the first that is decoded."""
    new: int = 64
    """Tokens decoded and timed."""
    contexts: tuple[int, int] = (1024, 8192)
    """Tokens at which memory is compared."""
    copied: int = 4 << 30
    """Bytes of the tensor that is copied to measure the device."""


# --- ways of decoding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stepped:
    """Step after step; no token is waited for."""

    compiled: Mapping[str, Any] | None = None
    """Options of torch.compile, then with a StaticCache; None: the model as it is, with a DynamicCache."""

    def start(self, model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[Tensor, Step]:
        """The first tokens [B, 1], and what goes on from them."""
        cache: Cache = new_cache(model.config)
        if self.compiled is not None:
            cache = StaticCache(config=model.config, max_cache_len=prompt_BT.shape[1] + 2 * CHECKED + sizes.new)
        step = run_step if self.compiled is None else compile_step(**self.compiled)
        first_B1 = read_prompt(model, prompt_BT, cache).argmax(-1, keepdim=True)
        return first_B1, lambda tokens_B1: step(model, tokens_B1, cache)

    def measure(self, model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[float, Found]:
        """Seconds per token, and the first tokens after the prompt's."""
        started, found, _ = decode(self.start(model, prompt_BT, sizes), CHECKED, prompt_BT.device)
        return decode(started, sizes.new, prompt_BT.device)[2], found


@dataclass(frozen=True, slots=True)
class Generated:
    """`generate`, as users call it; each token is waited for."""

    options: Mapping[str, Any] = field(default_factory=dict)
    by_decoder: bool = False
    """The product's `Decoder`, or else the model itself."""

    def measure(self, model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[float, Found]:
        """As `Stepped.measure`."""
        generate = Decoder(model).generate if self.by_decoder else model.generate
        for _ in range(2):  # the first compiles
            clock, logits = Clock(), list[Tensor]()

            def keep(text_BT: Tensor, scores_BV: Tensor, kept: list[Tensor] = logits) -> Tensor:
                kept += [scores_BV.clone()] if len(kept) <= CHECKED else []
                return scores_BV

            text_BT = generate(
                prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                max_new_tokens=1 + CHECKED + sizes.new,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
                logits_processor=LogitsProcessorList([keep]),
                **self.options,
            )
        new_BT, times = text_BT[:, prompt_BT.shape[1] :], clock.times[1:]  # the first is the prompt's
        found = [(new_BT[:, t : t + 1], logits[t]) for t in range(1, 1 + CHECKED)]
        return (times[-1] - times[CHECKED]) / (len(times) - 1 - CHECKED), found


WAYS: Mapping[str, Stepped | Generated] = {
    "eager": Stepped(),
    "eager-again": Stepped(),
    "tuned": Stepped(TUNED),
    "reduce-overhead": Stepped({"mode": "reduce-overhead"}),
    "product": Generated(by_decoder=True),
    "generate": Generated({"cache_implementation": "static"}),
    "generate-tuned": Generated(
        {"cache_implementation": "static", "compile_config": CompileConfig(mode=None, fullgraph=True, **TUNED)}
    ),
    "generate-eager": Generated(),
}


def decode(started: tuple[Tensor, Step], tokens: int, device: torch.device) -> tuple[tuple[Tensor, Step], Found, float]:
    """Decode greedily: where it stands then, the first tokens, and seconds per token."""
    token_B1, step = started
    found: Found = []
    synchronize(device)
    began = time.perf_counter()
    for _ in range(tokens):
        logits_BV = step(token_B1)
        token_B1 = logits_BV.argmax(-1, keepdim=True)
        if len(found) < CHECKED:
            found.append((token_B1, logits_BV.clone()))  # a CUDA graph writes its logits to the same place each time
    synchronize(device)
    return (token_B1, step), found, (time.perf_counter() - began) / tokens


def synchronize(device: torch.device) -> None:
    """Wait for what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: list[str] | None = None) -> int:
    """Print Markdown as it is measured, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cpu or cuda:N [%(default)s]")
    parser.add_argument("--ways", nargs="+", default=TURNS, metavar="WAY[:BATCH]", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--budget", type=float, default=480, help="seconds, then the rest is skipped [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="small shapes and few tokens")
    parser.add_argument("--kernels", action="store_true", help="list the kernels that each way runs for a token")
    args = parser.parse_args(argv)
    turns = [(way, int(batch or 1)) for way, _, batch in (turn.partition(":") for turn in args.ways)]
    if unknown := sorted({way for way, _ in turns} - set(WAYS)):
        parser.error(f"way {unknown[0]!r} is none of {', '.join(WAYS)}")
    logging.getLogger("transformers").setLevel(logging.ERROR)

    deadline = time.monotonic() + args.budget
    device = torch.device(args.device)
    sizes = Sizes(prompt=40, new=8, contexts=(32, 64), copied=1 << 24) if args.quick else Sizes()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results: dict[str, Any] = {"device": name, "date": f"{datetime.now():%Y-%m-%d}", **versions()}
    say(f"# Serving: {name}\n\n" + ", ".join(f"{k} {v}" for k, v in results.items() if v) + "\n")
    with torch.no_grad():
        results |= rates(device, sizes.copied)
        model = build(small_config() if args.quick else config_8b(), device)
        results |= weights(model, results["copy_bytes_per_s"])
        say(
            f"Copies at {results['copy_bytes_per_s'] / 1e12:.3f} TB/s (read and written), sums at "
            f"{results['sum_bytes_per_s'] / 1e12:.3f} TB/s. Weights: {results['weight_bytes'] / 1e9:.2f} GB, "
            f"of which a token reads {results['read_bytes'] / 1e9:.2f}: bound {results['bound_ms']:.3f} ms.\n"
        )
        with attempt("prefill", deadline):
            results["prefill"] = prefill(model, sizes, device)
        with attempt("memory", deadline):
            results["memory"] = memory(model, sizes, device)
        say("| way | batch | ms per token | share of bound | the same, embedding counted | off the eager logits | s |")
        say("|---|---|---|---|---|---|---|")
        results["decode"] = []
        references: dict[int, Found] = {}
        for way, batch in turns:
            with attempt(f"{way}, batch {batch}", deadline):
                prompt_BT = texts(model, batch, sizes.prompt, device)
                began, how = time.monotonic(), WAYS[way]
                seconds, found = how.measure(model, prompt_BT, sizes)
                if batch not in references:  # "eager" is that itself
                    references[batch] = found if way == "eager" else Stepped().measure(model, prompt_BT, sizes)[1]
                row = {"way": way, "batch": batch, "ms": 1000 * seconds, **difference(found, references[batch])}
                row["seconds"] = time.monotonic() - began  # compiling included
                report(row, results)
                results["decode"].append(row)
                if args.kernels and isinstance(how, Stepped):
                    list_kernels(how.start(model, prompt_BT, sizes), device)
            release(device)
    print(json.dumps(results, default=str))
    return 0


def say(text: str) -> None:
    """Print at once, so that nothing is lost when the machine is taken away."""
    print(text, flush=True)


@contextmanager
def attempt(what: str, deadline: float) -> Iterator[None]:
    """Run the body in the time that is left; what goes wrong in it is printed and does not stop the rest."""

    def stop(*_: object) -> None:
        raise TimeoutError("out of time")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.01))
        yield
    except Exception as error:  # one way that fails must not cost the others their turn
        say(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the model and the machine ---------------------------------------------------------------------------------------


def config_8b() -> LlambaConfig:
    """Llamba-8B with four of Llama-3.1-8B's layers."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    donor = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        max_position_embeddings=131072,
        rope_parameters=rope | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    )
    return LlambaConfig().with_attention(DONOR_LAYERS, donor)


def small_config() -> LlambaConfig:
    """The same kinds of layers in small."""
    donor = LlamaConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
    )
    donor.intermediate_size = 256
    ssm = {"n_v_heads": 4, "n_qk_heads": 4, "d_state": 16}
    base = LlambaConfig(vocab_size=512, d_model=128, n_layer=4, mlp_cfg={"intermediate_size": 256}, ssm_cfg=ssm)
    return base.with_attention((1,), donor)


def build(config: LlambaConfig, device: torch.device) -> LlambaForCausalLM:
    """A model with random weights in bf16, made where it is used."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlambaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def texts(model: LlambaForCausalLM, batch: int, tokens: int, device: torch.device) -> Tensor:
    """Random tokens [batch, tokens], the same each time."""
    made = torch.randint(1, model.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(batch))
    return made.to(device)


def rates(device: torch.device, size: int) -> dict[str, float]:
    """Bytes per second of copying a large tensor, those read and those written, and of summing one."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copying = median(timed(lambda: target.copy_(source), device, 10))
    return {"copy_bytes_per_s": 2 * size / copying, "sum_bytes_per_s": size / median(timed(source.sum, device, 10))}


def weights(model: LlambaForCausalLM, rate: float) -> dict[str, float]:
    """Bytes of all weights and of those read for a token, and the time that reading them takes at `rate`."""
    everything = sum(p.nbytes for p in model.parameters())
    read = everything if model.config.tie_embeddings else everything - model.backbone.embedding.weight.nbytes
    return {"weight_bytes": everything, "read_bytes": read, "bound_ms": 1000 * read / rate}


def timed(run: Callable[[], object], device: torch.device, times: int) -> list[float]:
    """Seconds of each of several runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def release(device: torch.device) -> None:
    """Give caches and compiled graphs of the last way back."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- measurements ----------------------------------------------------------------------------------------------------


def difference(found: Found, reference: Found) -> dict[str, Any]:
    """Greatest relative error of the logits, up to the first token that differs, and how many tokens those are."""
    worst, compared = 0.0, 0
    for (token_B1, logits_BV), (expected_B1, expected_BV) in zip(found, reference, strict=True):
        error = (logits_BV.float() - expected_BV.float()).norm() / expected_BV.float().norm()
        worst, compared = max(worst, error.item()), compared + 1
        if not torch.equal(token_B1, expected_B1):  # from here on they read different texts
            break
    return {"error": worst, "compared": compared}


def report(row: dict[str, Any], results: dict[str, Any]) -> None:
    """One line of the table."""
    bound, whole = results["bound_ms"], 1000 * results["weight_bytes"] / results["copy_bytes_per_s"]
    off = f"{100 * row['error']:.2f} % over {row['compared']} tokens"
    shares = f"{bound / row['ms']:.3f} | {whole / row['ms']:.3f}"
    say(f"| {row['way']} | {row['batch']} | {row['ms']:.3f} | {shares} | {off} | {row['seconds']:.0f} |")


def prefill(model: LlambaForCausalLM, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Tokens per second of reading a prompt into an empty cache, as `generate` does."""
    prompt_BT = texts(model, 1, sizes.prompt, device)
    seconds = median(timed(lambda: read_prompt(model, prompt_BT, new_cache(model.config)), device, 3))
    say(f"Prefill: {sizes.prompt} tokens in {1000 * seconds:.1f} ms, {sizes.prompt / seconds:,.0f} tokens/s.\n")
    return {"tokens": sizes.prompt, "seconds": seconds}


def memory(model: LlambaForCausalLM, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Bytes that a token of context adds while decoding, beside those of the donor layers' keys and values."""
    config = model.config
    keys = 2 * len(config.attention_layers) * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    on_gpu = device.type == "cuda"
    held, peak = [], []
    for context in sizes.contexts:
        release(device)
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        cache = new_cache(config)
        for piece_BT in texts(model, 1, context, device).split(1024, 1):
            first_B1 = read_prompt(model, piece_BT, cache).argmax(-1, keepdim=True)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        decode((first_B1, lambda tokens_B1, cache=cache: run_step(model, tokens_B1, cache)), 8, device)
        held.append(sum(tensor.nbytes for layer in cache.layers for tensor in states(layer)))
        peak.append(torch.cuda.max_memory_allocated(device) - before if on_gpu else held[-1])
        del cache
    more = sizes.contexts[1] - sizes.contexts[0]
    held_more, peak_more = (held[1] - held[0]) / more, (peak[1] - peak[0]) / more
    say(
        f"Decoding at {sizes.contexts[0]} and {sizes.contexts[1]} tokens of context: caches of {held[0] / 1e6:.1f} "
        f"and {held[1] / 1e6:.1f} MB, {held_more:,.0f} bytes per token (all memory at its peak: {peak_more:,.0f}); "
        f"keys and values of the donor layers: {keys:,}.\n"
    )
    return {"key_bytes_per_token": keys, "cache_bytes": held, "peak_bytes": peak}


def states(layer: Any) -> list[Tensor]:
    """What a layer of a cache keeps of the text."""
    return [layer.keys, layer.values] if hasattr(layer, "keys") else [layer.conv_states[0], layer.recurrent_states[0]]


def list_kernels(started: tuple[Tensor, Step], device: torch.device, steps: int = 4) -> None:
    """Print what runs for a token, that which takes longest first."""
    (token_B1, step), _, _ = decode(started, 8, device)
    on_gpu = device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as found:
        decode((token_B1, step), steps, device)
    events = [event for event in found.key_averages() if not on_gpu or event.device_type.name == "CUDA"]
    time_of = [(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / steps for event in events]
    say(f"\n{sum(e.count for e in events) / steps:.0f} kernels a token, {sum(time_of) / 1000:.3f} ms in them:\n")
    for micros, event in sorted(zip(time_of, events, strict=True), key=lambda pair: -pair[0])[:25]:
        say(f"    {micros:9.1f} us {event.count / steps:7.1f} x  {event.key[:100]}")
    say("")


if __name__ == "__main__":
    sys.exit(run_tool("serving.py", main))
