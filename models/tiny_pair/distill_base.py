"""Distil the base: the donor with every attention mixer replaced by a discrete Mamba-2 mixer.

Embedding, norms, MLPs and head are the donor's own and stay frozen. Each mixer alone learns to reproduce its donor
layer on the donor's own hidden states (the hidden-state alignment of MOHAWK: Bick et al., arXiv:2408.10189, section
3.2), with no end-to-end stage after it, hence "unaligned".
Shapes: B batch, T tokens, D model width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from models.configuration_llamba import LlambaConfig
from models.modeling_llamba import LlambaForCausalLM
from models.tiny_pair.curriculum import MIX, batches
from models.tiny_pair.train_donor import LARGER as LARGER_DONOR
from models.tiny_pair.train_donor import accuracy, check_batch, ramp

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the base is distilled; the defaults made the bundled one."""

    seed: int = 1_000_003
    """Of the mixers' first weights and of the batches: other batches than the donor's."""
    d_state: int = 8
    heads: int = 4
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    steps: int = 600
    """Few on purpose: a base this far from its donor answers near chance, as Llamba-8B does, and its layers
    interact; after 3,500 steps it keeps knowledge whole (0.44 overall) and four layers give 0.99."""
    stop_at: float | None = None
    """Stop once the base answers this share of the questions, as its checks tell; None to go on."""
    check_every: int = 100
    budget_seconds: float | None = None
    """In its last quarter the learning rate goes to zero at the latest; None for no end."""
    mix: Mapping[str, int] = field(default_factory=MIX.copy)
    """Groups of each subject in a batch."""
    device: str = "cuda"
    compile: bool = True
    by_layer: bool = False
    """Compile one layer of each model for all of them, which takes a fraction of the time."""

    def within(self, steps: int | None, seconds: float | None) -> Distillation:
        """The same, to end after at most so many steps and seconds; None for no such bound."""
        most = self.steps if steps is None else min(self.steps, steps)
        warmup_steps = min(self.warmup_steps, -(-most // 3))
        check_every = min(self.check_every, most)
        return replace(self, steps=most, warmup_steps=warmup_steps, check_every=check_every, budget_seconds=seconds)


LARGER = Distillation(
    d_state=16,
    heads=16,
    learning_rate=1e-3,
    warmup_steps=100,
    steps=1_000,
    stop_at=0.35,
    check_every=50,
    mix=LARGER_DONOR.mix,
    by_layer=True,
)
"""Of the larger pair: 16 heads, as its input projection is then a multiple of 16 wide."""
DISTILLATIONS = {"tiny": Distillation(), "larger": LARGER}


def base_from_donor(donor: LlamaForCausalLM, c: Distillation) -> LlambaForCausalLM:
    """A base with fresh mixers and otherwise the donor's weights, on the donor's device."""
    shape = donor.config
    config = LlambaConfig(
        vocab_size=shape.vocab_size,
        d_model=shape.hidden_size,
        n_layer=shape.num_hidden_layers,
        tie_embeddings=False,
        pad_vocab_size_multiple=1,
        norm_epsilon=shape.rms_norm_eps,
        mlp_cfg={"intermediate_size": shape.intermediate_size, "bias": False, "act_fn": "silu"},
        ssm_cfg={
            "d_state": c.d_state,
            "n_v_heads": c.heads,
            "n_qk_heads": c.heads,
            "expand": 1,
            "chunk_size": 64,
            "activation": "identity",
            "bias": False,
        },
        max_position_embeddings=shape.max_position_embeddings,
        bos_token_id=shape.bos_token_id,
        eos_token_id=shape.eos_token_id,
        pad_token_id=shape.pad_token_id,
    )
    torch.manual_seed(c.seed)
    base = LlambaForCausalLM(config).to(donor.device)
    weights = {
        name.replace("model.embed_tokens", "backbone.embedding")
        .replace("model.norm", "backbone.final_layernorm")
        .replace("model.layers", "backbone.layers"): weight
        for name, weight in donor.state_dict().items()
        if "self_attn" not in name
    }
    missing, unexpected = base.load_state_dict(weights, strict=False)
    if unexpected or any(".mixer." not in name for name in missing):
        raise ValueError(f"the donor does not fit the base: missing {missing}, unexpected {unexpected}")
    return base


@torch.no_grad()
def donor_states(donor: LlamaForCausalLM, tokens_BT: Tensor) -> list[Tensor]:
    """The residual stream [B, T, D] before every layer and after the last, in float32."""
    hidden_BTD = donor.model.embed_tokens(tokens_BT)
    positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
    rotary = donor.model.rotary_emb(hidden_BTD, positions)
    states = [hidden_BTD]
    with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16):
        for layer in donor.model.layers:
            hidden_BTD = layer(hidden_BTD, position_embeddings=rotary, attention_mask=None)
            states.append(hidden_BTD)
    return states


def distil(donor: LlamaForCausalLM, c: Distillation) -> tuple[LlambaForCausalLM, dict[str, Any]]:
    """Return the base (float32) and a record of its distillation."""
    torch.set_float32_matmul_precision("high")
    donor = donor.to(c.device).eval().requires_grad_(False)
    base = base_from_donor(donor, c).requires_grad_(False)
    for block in base.backbone.layers:
        block.mixer.requires_grad_(True)
    mixers = [p for p in base.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(mixers, lr=c.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    kind = c.device.split(":")[0]

    def errors(states: list[Tensor], mask_BT1: Tensor) -> Tensor:
        """[layers] squared error of each block's output, relative to what the donor layer adds to the stream."""
        each = []
        for block, before_BTD, after_BTD in zip(base.backbone.layers, states[:-1], states[1:], strict=True):
            with torch.autocast(kind, dtype=torch.bfloat16):
                made_BTD = block(before_BTD)
            missed = ((made_BTD.float() - after_BTD).square() * mask_BT1).sum()
            each.append(missed / ((after_BTD - before_BTD).square() * mask_BT1).sum())
        return torch.stack(each)

    def logits(tokens_BT: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16):
            return base(input_ids=tokens_BT, use_cache=False).logits

    whole = c.compile and not c.by_layer
    run_errors = torch.compile(errors) if whole else errors
    run_donor = torch.compile(donor_states) if whole else donor_states
    if c.compile and c.by_layer:
        torch.compiler.reset()  # what the donor's training compiled counts towards the most that torch keeps
        for layer in (*base.backbone.layers, *donor.model.layers):
            layer.compile()
    check = check_batch(256, c.device)
    started = time.monotonic()
    history: list[dict[str, Any]] = []
    stream = batches(c.seed, 0, c.steps, mix=c.mix)
    for step, (tokens, weights) in enumerate(stream):
        left = ramp(time.monotonic() - started, c.budget_seconds)
        scale = min((step + 1) / c.warmup_steps, 1 - step / c.steps, left)
        if scale <= 0:
            break
        for group in optimiser.param_groups:
            group["lr"] = c.learning_rate * scale
        states = run_donor(donor, torch.from_numpy(tokens).to(c.device, non_blocking=True))
        mask_BT1 = (torch.from_numpy(weights).to(c.device, non_blocking=True) > 0).unsqueeze(-1)
        per_layer = run_errors(states, mask_BT1)
        optimiser.zero_grad(set_to_none=True)
        per_layer.sum().backward()
        for block in base.backbone.layers:  # layers are independent problems: each has its own bound
            nn.utils.clip_grad_norm_(block.mixer.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % c.check_every == 0:
            relative = [round(e, 4) for e in per_layer.tolist()]
            right = accuracy(logits, check)
            seconds = round(time.monotonic() - started)
            history.append({"step": step + 1, "seconds": seconds, "error": relative, **right})
            log.info("base %s", history[-1])
            if c.stop_at is not None and sum(right.values()) / len(right) >= c.stop_at:
                break
    stream.close()
    return base.eval(), {"history": history}
