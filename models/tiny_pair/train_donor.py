"""Train the donor: a 12-layer Llama that answers all four subjects.

Warm-up, then a constant learning rate until every subject is above `TARGET` (two-hop emerges last), then a linear decay
to zero: the schedule follows the emergence instead of guessing when it comes. Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from models.tiny_pair.curriculum import MIX, batches
from models.tiny_pair.questions import SPLIT_SEEDS, SUBJECTS, sample, tokens_with_answer
from models.tiny_pair.vocabulary import LETTERS, ids, words
from models.tiny_pair.widen import widen

log = logging.getLogger(__name__)

TARGET = 0.985  # accuracy of the weakest subject at which the decay starts
BUNDLED = Path(__file__).resolve().parent / "donor"
RAMP = 0.25  # the last part of a time budget, in which the learning rate goes to zero


@dataclass(frozen=True, kw_only=True)
class DonorTraining:
    """How the donor is trained; the defaults made the bundled one."""

    seed: int = 0
    layers: int = 12
    width: int = 128
    heads: int = 4
    mlp_width: int = 384
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 500
    max_stable_steps: int = 40_000
    decay_steps: int = 4_000
    check_every: int = 500
    budget_seconds: float | None = None
    """In its last quarter the learning rate goes to zero at the latest; None for no end."""
    widen_noise: float | None = None
    """Not None: start as the bundled donor, widened, with that much noise (widen.py); None: from random weights."""
    mix: Mapping[str, int] = field(default_factory=MIX.copy)
    """Groups of each subject in a batch."""
    device: str = "cuda"
    compile: bool = True
    by_layer: bool = False
    """Compile one layer for all of them, which takes a fraction of the time that the whole model does."""

    def within(self, steps: int | None, seconds: float | None) -> DonorTraining:
        """The same, to end after at most so many steps and seconds; None for no such bound."""
        if steps is None:
            return replace(self, budget_seconds=seconds)
        fifth = -(-steps // 5)
        decay_steps = min(self.decay_steps, fifth)
        return replace(
            self,
            warmup_steps=min(self.warmup_steps, fifth),
            max_stable_steps=min(self.max_stable_steps, steps - decay_steps),
            decay_steps=decay_steps,
            check_every=min(self.check_every, steps),
            budget_seconds=seconds,
        )


LARGER = DonorTraining(
    width=512,
    heads=8,
    mlp_width=1536,
    learning_rate=3e-4,
    warmup_steps=100,
    max_stable_steps=600,
    decay_steps=600,
    check_every=100,
    widen_noise=0.5,
    mix={"knowledge": 1, "recall": 1, "two_hop": 1, "position": 1},
    by_layer=True,
)
"""Of the larger pair: grown from the bundled donor, for a tenth of its steps at four times its width."""
DONORS = {"tiny": DonorTraining(), "larger": LARGER}


def donor_config(c: DonorTraining) -> LlamaConfig:
    """A Llama in miniature."""
    return LlamaConfig(
        vocab_size=len(words()),
        hidden_size=c.width,
        intermediate_size=c.mlp_width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.heads,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=ids()["<eos>"],
        pad_token_id=ids()["<pad>"],
    )


def check_batch(questions_each: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T] questions of all subjects, B = 4 x questions_each; [B] position of `Answer:`; [B] the right option."""
    rows, at, answers = [], [], []
    for i, subject in enumerate(SUBJECTS):
        drawn = sample(subject, questions_each, np.random.default_rng([SPLIT_SEEDS["search"], i]))
        tokens, ask_at = tokens_with_answer(drawn)
        rows.append(tokens)
        at.append(ask_at)
        answers.append(drawn.answer_N)
    tensors = (torch.from_numpy(np.concatenate(a)).to(device) for a in (rows, at, answers))
    return tuple(tensors)  # type: ignore[return-value]  # three of them


@torch.no_grad()
def accuracy(forward: Any, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Fraction right per subject; `forward` maps [B, T] tokens to [B, T, V] logits."""
    tokens_BT, ask_at_B, answer_B = batch
    letters = torch.tensor([ids()[letter] for letter in LETTERS], device=tokens_BT.device)
    logits_BV = forward(tokens_BT)[torch.arange(len(tokens_BT)), ask_at_B].float()
    right = (logits_BV[:, letters].argmax(1) == answer_B).float().view(len(SUBJECTS), -1).mean(1)
    return dict(zip(SUBJECTS, right.tolist(), strict=True))


def _optimiser(model: nn.Module, c: DonorTraining) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=c.learning_rate, betas=(0.9, 0.98), fused=c.device.startswith("cuda"))


def _new(c: DonorTraining) -> LlamaForCausalLM:
    model = LlamaForCausalLM(donor_config(c))
    for name, weight in model.named_parameters():  # depth-scaled residual outputs, as in GPT-2
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data /= (2 * c.layers) ** 0.5
    return model


def _widened(c: DonorTraining, noise: float) -> LlamaForCausalLM:
    bundled = LlamaForCausalLM.from_pretrained(BUNDLED)
    return widen(bundled, donor_config(c), noise=noise, seed=c.seed)


def ramp(seconds: float, budget_seconds: float | None) -> float:
    """The share of the learning rate that time leaves: 1, in the last part of the budget falling to 0 at its end."""
    return 1.0 if budget_seconds is None else min(1.0, (budget_seconds - seconds) / (RAMP * budget_seconds))


def train(c: DonorTraining) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Return the trained donor (float32) and a record of its training."""
    torch.manual_seed(c.seed)
    torch.set_float32_matmul_precision("high")
    model = (_new(c) if c.widen_noise is None else _widened(c, c.widen_noise)).to(c.device)
    kind = c.device.split(":")[0]

    def logits(tokens_BT: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16):
            return model(input_ids=tokens_BT, use_cache=False).logits

    def loss_of(tokens_BT: Tensor, weight_BT: Tensor) -> Tensor:
        logits_BTV = logits(tokens_BT)[:, :-1].float()
        each = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
        weight = weight_BT[:, 1:].flatten()
        return (each * weight).sum() / weight.sum()

    whole = c.compile and not c.by_layer
    run_loss = torch.compile(loss_of) if whole else loss_of
    run_logits = torch.compile(logits) if whole else logits
    if c.compile and c.by_layer:
        for layer in model.model.layers:
            layer.compile()
    optimiser = _optimiser(model, c)
    check = check_batch(256, c.device)
    started = time.monotonic()
    decay_from = c.max_stable_steps
    history: list[dict[str, Any]] = []
    stream = batches(c.seed, 0, c.max_stable_steps + c.decay_steps, mix=c.mix)
    for step, (tokens, weights) in enumerate(stream):
        left = ramp(time.monotonic() - started, c.budget_seconds)
        scale = min((step + 1) / c.warmup_steps, 1 - (step - decay_from) / c.decay_steps, left)
        if scale <= 0:
            break
        for group in optimiser.param_groups:
            group["lr"] = c.learning_rate * scale
        tokens_BT = torch.from_numpy(tokens).to(c.device, non_blocking=True)
        loss = run_loss(tokens_BT, torch.from_numpy(weights).to(c.device, non_blocking=True))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % c.check_every == 0:
            right = accuracy(run_logits, check)
            seconds = time.monotonic() - started
            history.append({"step": step + 1, "seconds": round(seconds), "loss": round(loss.item(), 4), **right})
            log.info("donor %s", history[-1])
            if step < decay_from and min(right.values()) >= TARGET:
                decay_from = step + 1
    stream.close()
    return model.eval(), {
        "decay_from_step": decay_from,
        "history": history,
        "accuracy": accuracy(run_logits, check),
    }
