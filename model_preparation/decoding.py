"""Decodes as `model.generate` does, but a token's step is compiled once, for all texts.

`generate` prepares the settings, the logits processors and the criteria to stop; only its loop is replaced.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StaticCache, StoppingCriteriaList
from transformers.generation import GenerationMode

from models.errors import ModelError
from models.weights import one_line

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.cache_utils import Cache
    from transformers.generation.streamers import BaseStreamer

    from models.modeling_llamba import LlambaForCausalLM

Step = Callable[["LlambaForCausalLM", Tensor, "Cache"], Tensor]
"""The model, tokens [B, 1] and what was before -> logits [B, V]."""

TUNED: Mapping[str, Any] = MappingProxyType(
    {"options": {"triton.cudagraphs": True, "coordinate_descent_tuning": True}},
)
"""What `torch.compile` is told. A CUDA graph spares the launches of 400 kernels; tuned, a product with one row becomes
a reduction that reads the weights at the rate of the memory."""
WARM_UP = 3
"""Steps: one compiles, one records the CUDA graph, one replays it."""


class CompilationError(ModelError):
    """This machine cannot compile the step: it has no compiler, say."""


class Decoder:
    """A model and room for its texts; the first text, or `prepare`, compiles, which takes about a minute at 8B.

    Not for several threads at once.

    Attributes:
        room: Most tokens of a text, prompt included; it is made larger when a text needs it, which compiles again.
        compile_seconds: What the last compiling took, or None.
    """

    def __init__(self, model: LlambaForCausalLM, *, compiled: Mapping[str, Any] | None = TUNED) -> None:
        """Nothing is computed yet.

        Args:
            model: Its weights may be on one device only.
            compiled: Options of `torch.compile`; None to run the step as it is.
        """
        self.room = 0
        self.compile_seconds: float | None = None
        self._model = model
        self._compiled = compiled
        self._step: Step = run_step
        self._cache: StaticCache | None = None
        self._batch = 0

    @torch.no_grad()
    def prepare(self, tokens: int, batch: int = 1) -> None:
        """Make room for as many texts of as many tokens, and compile; says so on stderr.

        Raises:
            CompilationError: this machine cannot compile.
        """
        self._cache, self._batch = None, 0  # gives the memory back
        self.room = max(tokens, WARM_UP + 1)
        cache = StaticCache(config=self._model.config, max_cache_len=self.room)
        start_B1 = torch.zeros(batch, 1, dtype=torch.long, device=self._model.device)
        read_prompt(self._model, start_B1, cache)
        if self._compiled is not None:
            self._step = compile_step(**self._compiled)
            print(
                f"compiling the decoding of texts of up to {self.room:,} tokens; at 8B this takes about a minute ...",
                file=sys.stderr,
                flush=True,
            )
            began = time.perf_counter()
            self._warm_up(start_B1, cache)
            self.compile_seconds = time.perf_counter() - began
            print(f"compiled in {self.compile_seconds:.0f} s", file=sys.stderr, flush=True)
        self._cache, self._batch = cache, batch

    def _warm_up(self, tokens_B1: Tensor, cache: StaticCache) -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)  # products in float32 stay exact
                for _ in range(WARM_UP):
                    self._step(self._model, tokens_B1, cache).argmax().item()  # waits
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler and what it calls, whose errors are of many kinds
            why = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice for those who work on torch
            told = f"the decoding of a token cannot be compiled here ({why}); decode without compiling"
            raise CompilationError(told) from error

    def generate(self, prompt_BT: Tensor, *, streamer: BaseStreamer | None = None, **options: Any) -> Tensor:
        """As `model.generate`; tokens reach the streamer while the next one is computed.

        Args:
            prompt_BT: Texts of one length.
            streamer: Told the prompt, then tokens [B] one at a time.
            options: Those of `model.generate` that leave one text a text: no beams, no padding, no cache.

        Returns:
            [B, T + N], the prompt and N new tokens.

        Raises:
            ValueError: an option that cannot be met.
            CompilationError: this machine cannot compile.
        """
        loop = partial(self._decode, streamer=streamer)  # as `generate` keeps it from loops that are not its own
        return self._model.generate(prompt_BT, streamer=streamer, custom_generate=loop, **options)

    def _decode(
        self,
        model: LlambaForCausalLM,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        **model_inputs: Any,  # `generate` prepares those only that a loop does not name
    ) -> Tensor:
        """The loop; its arguments are those that `generate` gives to its own."""
        _refuse(generation_config, model_inputs.get("attention_mask"), model_inputs.get("past_key_values"))
        text_BT, longest = input_ids, generation_config.max_length
        cache = self._empty_cache(len(text_BT), longest)
        padding, samples = generation_config._pad_token_tensor, generation_config.do_sample
        is_done_B = torch.zeros(len(text_BT), dtype=torch.bool, device=text_BT.device)
        logits_BV = read_prompt(model, text_BT, cache)
        while True:
            # A copy, as the CUDA graph writes its logits to the same place each time.
            scores_BV = logits_processor(text_BT, logits_BV.to(copy=True, dtype=torch.float32))
            token_B = torch.multinomial(scores_BV.softmax(-1), 1)[:, 0] if samples else scores_BV.argmax(-1)
            if padding is not None:
                token_B = torch.where(is_done_B, padding, token_B)
            text_BT = torch.cat([text_BT, token_B[:, None]], 1)
            is_done_B = is_done_B | stopping_criteria(text_BT, scores_BV)
            arriving = _Arriving(token_B, is_done_B)
            if text_BT.shape[1] < longest:  # is begun before this token is known: the device need not wait for us
                logits_BV = self._step(model, token_B[:, None], cache)
            token_B, is_done = arriving.wait()
            if streamer is not None:
                streamer.put(token_B)
            if is_done:
                break
        if streamer is not None:
            streamer.end()
        return text_BT

    def _empty_cache(self, batch: int, tokens: int) -> StaticCache:
        if tokens > self.room:
            self.prepare(max(tokens, 2 * self.room), batch)
        elif batch != self._batch:
            self.prepare(self.room, batch)
        assert self._cache is not None
        self._cache.reset()  # one for all texts: the CUDA graph knows where it is
        return self._cache


def run_step(model: LlambaForCausalLM, tokens_B1: Tensor, cache: Cache) -> Tensor:
    """One token further; see `Step`."""
    return model(tokens_B1, past_key_values=cache, use_cache=True).logits[:, -1]


def compile_step(**how: Any) -> Step:
    """`run_step` under `torch.compile` with these options: one graph for all tokens and texts of one shape."""
    # Code of its own: torch counts the graphs of a code object, whoever asked for them, and refuses the ninth.
    own = FunctionType(run_step.__code__.replace(), run_step.__globals__, "run_step")
    compiled = torch.compile(own, fullgraph=True, dynamic=False, **how)

    def step(model: LlambaForCausalLM, tokens_B1: Tensor, cache: Cache) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # the logits of the last one may be written over
        return compiled(model, tokens_B1, cache)

    return step


def read_prompt(model: LlambaForCausalLM, prompt_BT: Tensor, cache: Cache) -> Tensor:
    """Read texts into the cache, not compiled, as lengths differ; returns logits [B, V] of what follows."""
    return model(prompt_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def _refuse(settings: GenerationConfig, attention_mask: Tensor | None, cache: Cache | None) -> None:
    if settings.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"a Decoder knows no {settings.get_generation_mode().value}; call model.generate")
    if attention_mask is not None and not bool((attention_mask == 1).all()):
        raise ValueError("a Decoder takes texts of one length, without padding; call model.generate")
    if settings.return_dict_in_generate or (cache is not None and int(cache.get_seq_length()) > 0):
        raise ValueError("a Decoder takes no cache and returns tokens only; call model.generate")


class _Arriving:
    """Values on their way from the device, which goes on meanwhile."""

    def __init__(self, token_B: Tensor, is_done_B: Tensor) -> None:
        self._values = torch.stack([token_B, is_done_B.long()]).to("cpu", non_blocking=True)
        on_gpu = token_B.device.type == "cuda"
        self._copied = torch.cuda.current_stream(token_B.device).record_event() if on_gpu else None

    def wait(self) -> tuple[Tensor, bool]:
        """Tokens [B], on the CPU, and whether all texts are done."""
        if self._copied is not None:
            self._copied.synchronize()
        token_B, is_done_B = self._values
        return token_B, bool(is_done_B.all())
