"""Lets a model continue a text, or a conversation, and prints its words as they come.

Shapes: T tokens of one text.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import TextStreamer

from model_preparation.device import memory_errors_named
from models.errors import ModelError
from models.weights import one_line

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.generation.streamers import BaseStreamer

    from model_preparation.decoding import Decoder
    from models.modeling_llamba import LlambaForCausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float | None = None
    """Above 0; None for the most likely token each time, unless `top_p` is given."""
    top_p: float | None = None
    """Choose among the most likely tokens that together have this probability."""

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature is None and self.top_p is None

    def settings(self, of_model: GenerationConfig) -> GenerationConfig:
        """The model's own settings (where texts end), but with this choice of tokens."""
        settings = copy.deepcopy(of_model)
        settings.max_length = None
        settings.max_new_tokens = self.max_new_tokens
        settings.do_sample = not self.is_greedy
        settings.temperature, settings.top_p = (
            (None, None) if self.is_greedy else (self.temperature or 1.0, self.top_p or 1.0)
        )
        if self.is_greedy:
            settings.top_k = None
        return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model wrote."""

    text: str
    tokens: list[int]
    seconds: float
    is_interrupted: bool


class Conversation(Protocol):
    """What was said so far, as tokens for the model."""

    def ask(self, prompt: str) -> list[int]:
        """All tokens that the model is to continue."""

    def hear(self, answer: Answer) -> None:
        """Remember what it said."""


class PlainText:
    """One text that grows: each prompt, what the model made of it, and a new line before the next prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []

    def ask(self, prompt: str) -> list[int]:
        """See `Conversation`."""
        if self._tokens:
            self._tokens += self._tokenizer("\n" + prompt, add_special_tokens=False)["input_ids"]
        else:
            self._tokens = list(self._tokenizer(prompt)["input_ids"])
        return self._tokens

    def hear(self, answer: Answer) -> None:
        """See `Conversation`."""
        ends = set(self._tokenizer.all_special_ids)
        self._tokens += [token for token in answer.tokens if token not in ends]


class Chat:
    """Turns of user and assistant, spelled by the tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._turns: list[dict[str, str]] = []

    def ask(self, prompt: str) -> list[int]:
        """See `Conversation`.

        Raises:
            ModelError: the template refuses, or is damaged.
        """
        self._turns.append({"role": "user", "content": prompt})
        try:
            spelled = self._tokenizer.apply_chat_template(self._turns, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # a template is a program; jinja has a family of errors and templates raise others
            raise ModelError(f"the tokenizer's chat template fails ({one_line(error)}); give --raw") from error
        return list(spelled["input_ids"])

    def hear(self, answer: Answer) -> None:
        """See `Conversation`."""
        self._turns.append({"role": "assistant", "content": answer.text.strip()})


def new_conversation(tokenizer: Any, *, raw: bool) -> Conversation:
    """A chat where the tokenizer has a template for one and not `raw`; else plain text."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    return Chat(tokenizer) if has_template and not raw else PlainText(tokenizer)


def answer(
    model: LlambaForCausalLM,
    tokenizer: Any,
    conversation: Conversation,
    prompt: str,
    how: Sampling,
    decoder: Decoder | None = None,
) -> Answer:
    """Have the model answer, printing on stdout; Ctrl-C ends the answer early.

    Raises:
        CompilationError: the decoder cannot compile.
        ModelError: the prompt is no text, or none at all.
        EvaluationError: the memory does not suffice.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ModelError(f"the prompt {ascii(prompt)[:80]} is no text in UTF-8; write it in that encoding") from None
    tokens = conversation.ask(prompt)
    if not tokens:
        raise ModelError(f"the prompt {prompt!r} has no tokens; give some text")
    printer = _Printer(tokenizer)
    context = torch.tensor([tokens], device=model.device)
    interrupted = False
    began = time.perf_counter()
    try:
        with memory_errors_named(str(model.device), f"answering {len(tokens)} tokens", "give a shorter prompt"):
            generate(model, context, how.settings(model.generation_config), printer, decoder)
    except KeyboardInterrupt:
        interrupted = True
        printer.end()
    seconds = time.perf_counter() - began
    heard = Answer(text="".join(printer.pieces), tokens=printer.tokens, seconds=seconds, is_interrupted=interrupted)
    conversation.hear(heard)
    return heard


def generate(
    model: LlambaForCausalLM,
    context_1T: torch.Tensor,
    settings: GenerationConfig,
    streamer: BaseStreamer | None = None,
    decoder: Decoder | None = None,
) -> torch.Tensor:
    """`model.generate` of one text with these settings alone: transformers fills what is None from the model's own.

    Args:
        model: What continues the text.
        context_1T: The text.
        settings: All that the model's `generation_config` would say.
        streamer: Told the context, then each token.
        decoder: Decodes in the model's stead when given.

    Returns:
        [1, T + N], the context and N new tokens.
    """
    kept = model.generation_config
    model.generation_config = settings
    try:
        return (decoder or model).generate(context_1T, attention_mask=torch.ones_like(context_1T), streamer=streamer)
    finally:
        model.generation_config = kept


class _Printer(TextStreamer):
    """Prints words as they are complete, and keeps them."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tokens: list[int] = []
        self.pieces: list[str] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt at first, then one token at a time."""
        if not self.next_tokens_are_prompt:
            self.tokens += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is complete."""
        self.pieces.append(text)
        super().on_finalized_text(text, stream_end=stream_end)
