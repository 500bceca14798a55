"""lm-eval's own command line, with our engine among its models.

python -m evaluation.lm --model hybrid --model_args pretrained=model_checkpoints/best_4layer --tasks mmlu
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run lm-eval's command line, which reads sys.argv; the model `hybrid` is imported where it is asked for."""
    import lm_eval.models  # noqa: F401 -- its own models, which it looks for only while no other is known
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "hybrid" not in model_registry:
        model_registry.register("hybrid", target="evaluation.hybrid_lm:HybridLM")
    cli_evaluate()
    return 0


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("evaluation.lm", main)
