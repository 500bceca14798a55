"""Where the search meets the models: flags become an evaluator.

Other packages are imported only when a function is called, so that importing this loads no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Evaluator
from genetic_algorithm.imported import imported

_NEEDED = ("num_layers", "num_questions", "subjects", "answers")


def eval_config(args: argparse.Namespace, pair: str) -> Any:
    """The `EvalConfig` of these flags; flags not given keep its defaults."""
    from evaluation.config import EvalConfig  # entry points wire the packages, late
    from evaluation.devices import device_name
    from evaluation.mixture import parse_tasks

    if args.gpus or (args.ray_address and not args.cpu_workers):
        device = "cuda:0"  # of each worker the only one
    else:
        device = device_name("cpu" if args.cpu_workers else args.gpu or "auto")
    tasks, weights = parse_tasks(args.tasks or ())
    if args.tasks and not tasks:
        raise SearchError("--tasks names no task; name one, or leave the option out for the pair's own")
    if args.task_dir is not None and not tasks:
        raise SearchError("--task-dir says where tasks lie, not which are asked; name them with --tasks")
    flags = {
        "task_dir": None if args.task_dir is None else args.task_dir.expanduser().absolute(),
        "mmlu_dir": None if args.mmlu_dir is None else args.mmlu_dir.expanduser().absolute(),
        "layers_dir": None if args.layers_dir is None else args.layers_dir.expanduser().absolute(),
        "question_order": args.question_order,
        "num_fewshot": args.num_fewshot,
        "batch_tokens": args.batch_tokens,
        "fast_dtype": args.fast_dtype,
        "memory": args.memory,
    }
    return EvalConfig(
        pair=pair,
        tasks=tasks,
        task_weights=weights,
        device=device,
        dtype=args.dtype or ("float32" if device == "cpu" else "bfloat16"),
        **{name: value for name, value in flags.items() if value is not None},
    )


def cluster_options(args: argparse.Namespace) -> Any:
    """The `ClusterOptions` of these flags; None where one process does it all.

    Raises:
        SearchError: for flags that contradict one another.
    """
    from evaluation.cluster.options import parse_options

    return parse_options(
        gpus=args.gpus,
        cpu_workers=args.cpu_workers,
        address=args.ray_address,
        listen=args.listen,
        gpu=args.gpu,
    )


def join(args: argparse.Namespace) -> int:
    """Help the run in --output-dir until it is over; returns the exit code.

    Raises:
        SearchError: without --output-dir, or with workers that are not of this host.
    """
    from evaluation.cluster.joining import join

    if args.dry_run:
        raise SearchError("--join helps a run and plans none; leave --dry-run out")
    options = cluster_options(args)
    if args.output_dir is None or options is None or options.address or not options.here:
        raise SearchError("--join needs --output-dir, the run to help, and what helps: --gpus all or --cpu-workers N")
    return join(args.output_dir, options)


@contextmanager
def opened_evaluator(
    evaluation: Any, factory: str | None, cluster: Any, *, download: bool = True
) -> Iterator[Evaluator]:
    """As `make_evaluator`; of several workers where `cluster`, a `ClusterOptions`, says which."""
    if cluster is None:
        yield make_evaluator(evaluation, factory, download=download)
        return
    from functools import partial

    from evaluation.cluster.driver import ClusterEvaluator
    from evaluation.cluster.ray_pool import RayPool
    from model_preparation.sources import locate
    from models.pairs import get_pair

    if evaluation is not None:  # once, before all workers want them
        for role in ("base", "donor"):
            locate(get_pair(evaluation.pair), role, download=download)
    with ClusterEvaluator(RayPool(cluster, partial(make_evaluator, evaluation, factory, download=download))) as found:
        yield found


def make_evaluator(evaluation: Any, factory: str | None, *, download: bool = True) -> Evaluator:
    """Build the engine of an `EvalConfig`, or call MODULE:FACTORY where one is named.

    Args:
        evaluation: of the command line; None where `factory` is given.
        factory: MODULE:FACTORY, or None.
        download: whether models that are not here may be fetched.

    Raises:
        SearchError: if the factory cannot be found or makes something else.
    """
    if factory is None:
        from functools import partial

        from evaluation.build import build_evaluator, require_fp8, usable_device, with_coarse_answers
        from model_preparation.sources import locate  # knows the hubs, and asks their caches first

        if evaluation.fast_dtype == "fp8":  # before anything large is loaded
            require_fp8(usable_device(evaluation.device))
        found = partial(locate, download=download)
        engine = build_evaluator(evaluation, max_limit=None, locate=found)
        return with_coarse_answers(engine) if evaluation.fast_dtype == "fp8" else engine
    evaluator: Evaluator = imported("--evaluator", factory, "factory")()
    lacking = [name for name in _NEEDED if not hasattr(evaluator, name)]
    if lacking:
        raise SearchError(
            f"--evaluator {factory} made a {type(evaluator).__name__}, which has no {lacking[0]}; an "
            f"evaluator has {', '.join(_NEEDED)}"
        )
    return evaluator
