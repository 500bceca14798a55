"""Scores a model on questions, for the tools that test: a whole model, or layer sets of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from evaluation.accuracy import Accuracy, evaluate_sets
from evaluation.build import load_questions, usable_device
from evaluation.config import EvalConfig
from evaluation.engine import Engine
from genetic_algorithm import LayerSet, Score

if TYPE_CHECKING:
    from torch import Tensor

    from models.hybrid import HybridPair
    from models.modeling_llamba import LlambaForCausalLM


class WholeModel:
    """A finished model with the interface of a pair: every layer is its own, of either kind.

    Shapes: B rows, T tokens, D model width, N positions, V vocabulary.
    """

    def __init__(self, model: LlambaForCausalLM) -> None:
        self.model = model
        self.depth: int = model.config.n_layer
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids to hidden states [B, T, D]."""
        return self.model.backbone.embedding(tokens_BT)

    def base(self, i: int, h_BTD: Tensor) -> Tensor:
        """The model's layer `i`, texts starting at position 0."""
        backbone = self.model.backbone
        if self.model.config.layer_types[i] == "linear_attention":
            return backbone.layers[i](h_BTD)
        positions_1T = torch.arange(h_BTD.shape[1], device=h_BTD.device).unsqueeze(0)
        assert backbone.rotary_emb is not None  # a model with a Llama block has it
        tables = backbone.rotary_emb(h_BTD, positions_1T)
        return backbone.layers[i](h_BTD, attention_mask=None, position_embeddings=tables)

    def donor(self, i: int, h_BTD: Tensor) -> Tensor:
        """As `base`: there is no other model to compare with."""
        return self.base(i, h_BTD)

    def logits(self, h_ND: Tensor) -> Tensor:
        """Final norm and head: [N, D] to float32 [N, V]."""
        return self.model.project(self.model.backbone.final_layernorm(h_ND)).float()


@dataclass(frozen=True, slots=True)
class Device:
    """Where to run and in which dtype."""

    name: str
    dtype: torch.dtype

    @classmethod
    def choose(cls, gpu: str) -> Device:
        """`auto`, `cpu` or a number; bfloat16 on a GPU and float32 on a CPU.

        Raises:
            EvaluationError: there is no such device.
        """
        if gpu == "auto":
            gpu = "0" if torch.cuda.is_available() else "cpu"
        name = str(usable_device(gpu if gpu == "cpu" else f"cuda:{gpu}"))
        return cls(name, torch.float32 if name == "cpu" else torch.bfloat16)

    @property
    def dtype_name(self) -> Any:
        """The dtype as EvalConfig spells it."""
        return str(self.dtype).removeprefix("torch.")


def score_model(model: LlambaForCausalLM, tokenizer: Any, config: EvalConfig, limit: int | None) -> Accuracy:
    """Score one model as it stands on the first `limit` questions of each subject (None: all).

    Raises:
        EvaluationError: for tasks or questions that cannot be had.
    """
    questions = load_questions(config, tokenizer, model.config, max_limit=limit)
    whole = cast("HybridPair", WholeModel(model))  # the engine needs no more of a pair than this
    engine = Engine(whole, questions, batch_tokens=config.batch_tokens)
    itself = LayerSet(())
    return evaluate_sets(engine, [itself], limit)[itself]


def spell_score(score: Score) -> dict[str, Any]:
    """A score as JSON values."""
    return {
        "accuracy": round(score.accuracy, 6),
        "standard_error": round(score.standard_error, 6),
        "questions": score.asked,
    }


def mmlu_folder(given: Path | None) -> Path | None:
    """The folder as an absolute path, so that it means the same everywhere."""
    return None if given is None else given.expanduser().absolute()
