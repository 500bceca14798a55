"""Ways of decoding that `serving.py` compares: the model as it is, compiled, as a CUDA graph, by `generate`.

A way reads a prompt into a cache and gives the first tokens with a function that takes tokens one step further;
`Generate` calls `model.generate` instead, as users do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, StaticCache, StoppingCriteriaList
from transformers.cache_utils import Cache

from models.modeling_llamba import LlambaForCausalLM, new_cache

TUNED = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}
"""With the second, inductor makes a product with one row a fused reduction and tries the sizes of its blocks."""
CHECKED = 16
"""Tokens compared with the eager model before the timing."""


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


Step = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[B, 1] tokens -> the next ones, and logits [B, V]."""


def synchronize(device: torch.device) -> None:
    """Wait for what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode(started: tuple[Tensor, Step], tokens: int, device: torch.device) -> tuple[tuple[Tensor, Step], list, float]:
    """Decode greedily: where it stands then, the tokens [B, 1] with their logits [B, V], and seconds per token."""
    token_B1, step = started
    found = []
    synchronize(device)
    began = time.perf_counter()
    for _ in range(tokens):
        token_B1, logits_BV = step(token_B1)
        token_B1 = token_B1.clone()  # a CUDA graph writes its results to the same place each time
        if len(found) < CHECKED:
            found.append((token_B1, logits_BV.clone()))
    synchronize(device)
    return (token_B1, step), found, (time.perf_counter() - began) / tokens


def run_step(model: LlambaForCausalLM, tokens_B1: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    """One token further: what all ways compute."""
    logits_BV = model(tokens_B1, past_key_values=cache, use_cache=True).logits[:, -1]
    return logits_BV.argmax(-1, keepdim=True), logits_BV


def filled(model: LlambaForCausalLM, cache: Cache, prompt_BT: Tensor) -> Tensor:
    """Read the prompt into the cache; returns the first tokens [B, 1]."""
    logits_B1V = model(prompt_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits_B1V[:, -1].argmax(-1, keepdim=True)


def static_cache(model: LlambaForCausalLM, sizes: Sizes) -> StaticCache:
    """Room for the prompt, what is checked and what is timed."""
    return StaticCache(config=model.config, max_cache_len=sizes.prompt + 2 * CHECKED + sizes.new + 64)


def eager(model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[Tensor, Step]:
    """The model as it is, keys in a DynamicCache."""
    cache = new_cache(model.config)
    return filled(model, cache, prompt_BT), lambda tokens_B1: run_step(model, tokens_B1, cache)


def graph(model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[Tensor, Step]:
    """The eager step recorded once as a CUDA graph, keys in a StaticCache."""
    cache = static_cache(model, sizes)
    inputs_B1 = filled(model, cache, prompt_BT)
    kept = [tensor.clone() for tensor in state_tensors(cache)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up outside the recording
        for _ in range(2):
            run_step(model, inputs_B1, cache)
    torch.cuda.current_stream().wait_stream(side)
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        next_B1, logits_BV = run_step(model, inputs_B1, cache)
    for tensor, value in zip(state_tensors(cache), kept, strict=True):  # what the recording did to the cache
        tensor.copy_(value)

    def step(tokens_B1: Tensor) -> tuple[Tensor, Tensor]:
        inputs_B1.copy_(tokens_B1)
        recording.replay()
        return next_B1, logits_BV

    return inputs_B1.clone(), step


def state_tensors(cache: Cache) -> list[Tensor]:
    """Every tensor of a cache that has been written to."""
    tensors: list[Tensor] = []
    for layer in cache.layers:
        if hasattr(layer, "keys"):
            tensors += [layer.keys, layer.values]
            tensors += [layer.cumulative_length] if hasattr(layer, "cumulative_length") else []
        else:
            tensors += [layer.conv_states[0], layer.recurrent_states[0]]
    return tensors


def compiled_with(**options: Any) -> Callable[..., tuple[Tensor, Step]]:
    """The step under torch.compile with these options, keys in a StaticCache."""

    def way(model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[Tensor, Step]:
        cache = static_cache(model, sizes)
        first_B1 = filled(model, cache, prompt_BT)
        compiled = torch.compile(run_step, fullgraph=True, dynamic=False, **options)

        def step(tokens_B1: Tensor) -> tuple[Tensor, Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(model, tokens_B1, cache)

        return first_B1, step

    return way


class Generate:
    """`model.generate`, as users call it."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self, model: LlambaForCausalLM, prompt_BT: Tensor, sizes: Sizes) -> tuple[list[float], list]:
        """Seconds at which each token was there, and the first tokens after the prompt's with their logits."""
        seen: list[float] = []

        def clock(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            seen.append(time.perf_counter())  # `generate` waits for each token itself
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        result = model.generate(
            prompt_BT,
            attention_mask=torch.ones_like(prompt_BT),
            max_new_tokens=1 + CHECKED + sizes.new,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
            return_dict_in_generate=True,
            output_logits=True,
            **self.options,
        )
        tokens_BT = result.sequences[:, prompt_BT.shape[1] + 1 :]
        return seen, [(tokens_BT[:, t : t + 1], result.logits[t + 1]) for t in range(CHECKED)]


WAYS: dict[str, Any] = {
    "eager": eager,
    "generate": Generate(cache_implementation="static"),
    "tuned": compiled_with(options=TUNED),
    "graph": graph,
    "generate-tuned": Generate(
        cache_implementation="static", compile_config=CompileConfig(mode=None, options=TUNED, fullgraph=True)
    ),
    "generate-eager": Generate(),
    "compiled": compiled_with(mode="reduce-overhead"),
    "autotuned": compiled_with(mode="max-autotune"),
}
"""By their names."""
