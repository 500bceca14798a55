"""The tools a person runs: get models, extract layers, build and test hybrid checkpoints; all network code.

from model_preparation import load_model
model, tokenizer = load_model("model_checkpoints/best_4layer")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_preparation.checkpoints.info import load_model
    from model_preparation.modelscope_utils import get_model_modelscope

__all__ = ["get_model_modelscope", "load_model"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import torch` itself imports this package (see saved_model.py)."""
    if name == "load_model":
        from model_preparation.checkpoints.info import load_model

        return load_model
    if name == "get_model_modelscope":
        from model_preparation.modelscope_utils import get_model_modelscope

        return get_model_modelscope
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
