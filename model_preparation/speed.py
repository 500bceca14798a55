"""How fast a model answers and how much memory that takes.

Shapes: T tokens of a prompt; batches of one.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from model_preparation.decoding import CompilationError, Decoder
from model_preparation.device import memory_errors_named
from model_preparation.talking import Sampling, generate

if TYPE_CHECKING:
    from models.modeling_llamba import LlambaForCausalLM

SHORT, LONG = 32, 2048
"""Tokens of the first prompt and of the longest; it is doubled while there is time."""
NEW_TOKENS, FEW_TOKENS = 64, 3
"""Tokens to decode, and those that tell how long a token takes."""
ENOUGH_S = 0.5
"""A prompt is not doubled where that would take longer."""
DECODING_S = 10.0
"""Where NEW_TOKENS would take longer, fewer are decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured, at batch size 1."""

    prompt_tokens: int
    prefill_tokens_per_second: float
    new_tokens: int
    decode_tokens_per_second: float
    compile_seconds: float | None
    """What compiling the decoding of a token took; None where it was not compiled."""
    weights_bytes: int
    peak_bytes: int
    """Most memory since the program began: of the GPU as torch counts it, else of the process."""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "prefill_tokens_per_second": round(self.prefill_tokens_per_second, 1),
            "new_tokens": self.new_tokens,
            "decode_tokens_per_second": round(self.decode_tokens_per_second, 1),
            "compile_seconds": None if self.compile_seconds is None else round(self.compile_seconds, 1),
            "weights_bytes": self.weights_bytes,
            "peak_memory_bytes": self.peak_bytes,
        }

    def table(self, device: str) -> str:
        """Three lines for a person."""
        of = "process" if device == "cpu" else device
        compiled = "not compiled" if self.compile_seconds is None else f"compiled in {self.compile_seconds:.0f} s"
        rows = (
            ("prefill", f"{self.prefill_tokens_per_second:,.1f} tokens/s", f"{self.prompt_tokens} tokens"),
            ("decode", f"{self.decode_tokens_per_second:,.1f} tokens/s", f"{self.new_tokens} tokens, {compiled}"),
            ("memory", _gb(self.peak_bytes), f"at most, {of}; the weights are {_gb(self.weights_bytes)}"),
        )
        return "\n".join(f"  {name:8} {figure:>20}  ({how})" for name, figure, how in rows)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.3f} GB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


@torch.no_grad()  # what is compiled under inference_mode serves there only
def measure(model: LlambaForCausalLM, *, compiled: bool) -> Speed:
    """Measure a model where it is: 10 to 20 s, compiling and slow CPUs apart.

    Args:
        model: What to measure.
        compiled: Whether to compile the decoding of a token, about a minute at 8B; where that fails, stderr says so
            and the model decodes as it is.

    Raises:
        EvaluationError: the memory does not suffice.
    """
    with memory_errors_named(str(model.device), "measuring the speed", "close other programs or give another --gpu"):
        tokens, prefill = _prefill(model)
        new_tokens, decode, compile_seconds = _decode(model, compiled)
    return Speed(
        prompt_tokens=tokens,
        prefill_tokens_per_second=prefill,
        new_tokens=new_tokens,
        decode_tokens_per_second=decode,
        compile_seconds=compile_seconds,
        weights_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        peak_bytes=peak_bytes(model.device),
    )


def peak_bytes(device: torch.device) -> int:
    """Most memory in use since the program began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _prompt(model: LlambaForCausalLM, tokens: int) -> torch.Tensor:
    return (torch.arange(tokens, device=model.device) % model.config.vocab_size).unsqueeze(0)


def _prefill(model: LlambaForCausalLM) -> tuple[int, float]:
    """Tokens of a prompt, and how many such tokens are read in a second."""
    tokens = SHORT
    longest = min(LONG, model.config.max_position_embeddings)
    while True:
        seconds = min(_seconds(model, _prompt(model, tokens)) for _ in range(2))  # the first warms up
        if 2 * tokens > longest or 2 * seconds > ENOUGH_S:
            return tokens, tokens / seconds
        tokens *= 2


def _seconds(model: LlambaForCausalLM, prompt_1T: torch.Tensor) -> float:
    began = time.perf_counter()
    model(prompt_1T, use_cache=True, logits_to_keep=1).logits.cpu()  # which waits for the GPU
    return time.perf_counter() - began


def _decode(model: LlambaForCausalLM, compiled: bool) -> tuple[int, float, float | None]:
    """How many tokens were decoded, how many in a second, and how long compiling took."""
    if compiled:
        decoder = Decoder(model)
        try:
            decoder.prepare(SHORT + NEW_TOKENS)
            return NEW_TOKENS, _timed_decoding(model, NEW_TOKENS, decoder), decoder.compile_seconds
        except CompilationError as error:
            print(error, file=sys.stderr)
    rate = _timed_decoding(model, FEW_TOKENS)
    tokens = max(FEW_TOKENS, min(NEW_TOKENS, int(DECODING_S * rate)))
    return tokens, _timed_decoding(model, tokens), None


def _timed_decoding(model: LlambaForCausalLM, tokens: int, decoder: Decoder | None = None) -> float:
    """Tokens that come in a second, from the first one on."""
    settings = Sampling(max_new_tokens=tokens).settings(model.generation_config)
    settings.min_new_tokens = tokens  # no token ends the text
    clock = Clock()
    generate(model, _prompt(model, SHORT), settings, clock, decoder)
    _, first, *_, last = clock.times  # the prompt is told to the clock, too
    return (tokens - 1) / (last - first)


class Clock(BaseStreamer):
    """Notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """A token is there."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to come."""
