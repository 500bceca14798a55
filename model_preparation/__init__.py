"""The tools a person runs: get models, extract layers, build and test hybrid checkpoints; all network code.

from model_preparation import load_checkpoint
model, tokenizer = load_checkpoint("model_checkpoints/best_4layer")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_preparation.checkpoint import load_checkpoint
    from model_preparation.modelscope_utils import get_model_modelscope

__all__ = ["get_model_modelscope", "load_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import torch` itself imports this package (see saved_model.py)."""
    if name == "load_checkpoint":
        from model_preparation.checkpoint import load_checkpoint

        return load_checkpoint
    if name == "get_model_modelscope":
        from model_preparation.modelscope_utils import get_model_modelscope

        return get_model_modelscope
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
