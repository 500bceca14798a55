"""Run a search from the command line.

python -m genetic_algorithm.run_search --dry-run
python -m genetic_algorithm.run_search --pair tiny --output-dir results/mine
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # before what follows imports them
    from evaluation.entry import require_packages

    require_packages("run_search")

import numpy as np

from genetic_algorithm import arguments, dry_run, observers, prior_knowledge, result, run_folder, settings, wiring
from genetic_algorithm.config import SearchConfig
from genetic_algorithm.donor import ask_donor
from genetic_algorithm.errors import SearchError
from genetic_algorithm.evaluator import Evaluator
from genetic_algorithm.layer_set import LayerSet
from genetic_algorithm.ledger import Request
from genetic_algorithm.progress import Progress, logging_to
from genetic_algorithm.report import live
from genetic_algorithm.search import CHECK, Search
from genetic_algorithm.strategies import find_strategy

if TYPE_CHECKING:
    from evaluation.remembering import Remembering

_log = logging.getLogger("genetic_algorithm.run_search")  # not __name__, which is __main__ under -m
_MACHINE = (
    "device",
    "memory",
    "batch_tokens",
    "layers_dir",
    "cache_dir",
    "task_dir",
)  # may change between sittings of one run


class _Terminated(KeyboardInterrupt):
    """SIGTERM: stop as after Ctrl-C."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What the command line asks for, checked as far as that goes without a model.

    `evaluation` is an `EvalConfig` (of the package `evaluation`), or None where `factory` is given; `cluster` a
    `ClusterOptions`, or None where one process does it all.
    """

    config: SearchConfig
    pair: str | None
    factory: str | None
    evaluation: Any
    cluster: Any
    single_scores: dict[int, float] | None
    elite: list[LayerSet]
    args: argparse.Namespace

    @property
    def settings(self) -> dict[str, Any]:
        """All flags that make this search once more, as JSON values by their names."""
        run = self.run
        known = {"single_layer_scores": run["single_layer_scores"], "elite": run["elite"] or None}
        return settings.complete(self.args, self.config, self.evaluation, known, _make_parser)

    @property
    def run(self) -> dict[str, Any]:
        """JSON values that are the same in every sitting of one run."""
        described: dict[str, Any] = {"factory": self.factory}
        if self.evaluation is not None:
            described = {k: v for k, v in dataclasses.asdict(self.evaluation).items() if k not in _MACHINE}
            described = {k: str(v) if isinstance(v, Path) else v for k, v in described.items()}
            if described["fast_dtype"] == "same":  # as in runs begun before there was a choice
                del described["fast_dtype"]
        scores = self.single_scores
        return {
            "evaluator": described,
            "search": dataclasses.asdict(self.config),
            "single_layer_scores": None if scores is None else {str(i): s for i, s in sorted(scores.items())},
            "elite": [list(layers.indices) for layers in self.elite],
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run one search; returns the exit code (0, or 130 and 143 when stopped by Ctrl-C and SIGTERM)."""
    given = list(sys.argv[1:] if argv is None else argv)
    job: Job | None = None
    folder: Path | None = None
    how = _in_language("nothing was written", "没有写入任何文件")
    with _sigterm_as_interrupt():
        try:
            args = parse(given)
            if args.join:
                how = _in_language("the run goes on without this host", "搜索在其他主机上继续运行")
                return wiring.join(args)
            job = _job(args)
            if args.print_config:
                print(settings.spelled(job.settings), end="")
                return 0
            if job.args.output_dir is not None:
                finished = run_folder.peek(job.args.output_dir, job.run)
                if finished is not None and not job.args.dry_run:
                    return _tell_finished(*finished)
            with ExitStack() as stack:
                download = not job.args.dry_run
                evaluator = stack.enter_context(
                    wiring.opened_evaluator(job.evaluation, job.factory, job.cluster, download=download)
                )
                search = _make_search(job, evaluator)
                if job.args.dry_run:
                    return dry_run.tell(evaluator, search)
                about = {"command": ["run_search", *given], "versions": run_folder.versions(), "settings": job.settings}
                opened = stack.enter_context(run_folder.opened(job.args.output_dir, job.run, about))
                folder = opened.paths.folder
                if opened.finished is not None:  # by another process, since we looked
                    return _tell_finished(opened.paths, opened.finished)
                return _search(job, evaluator, search, opened)
        except KeyboardInterrupt as stop:
            if os.environ.get("GA_DEBUG") == "1":
                raise
            if folder is not None and job is not None:
                command = arguments.resume_command(sys.executable, given, job.pair, folder)
                how = _in_language("nothing is lost; resume with: ", "没有丢失任何结果；继续运行：") + shlex.join(
                    command
                )
            print(f"run_search: {_in_language('stopped; ', '已停止；')}{how}", file=sys.stderr)
            return 143 if isinstance(stop, _Terminated) else 130


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The flags of a search, checked as far as they tell by themselves, without a look at models or devices.

    Raises:
        SearchError: for flags that contradict one another, or need what is not installed.
        SystemExit: for one that does not exist or a value that cannot be; the line is printed.
    """
    from evaluation.entry import Parser

    args = settings.parse(_make_parser, Parser, given, os.environ)
    arguments.check_model_flags(args)
    observers.require_packages(args.log_to)
    return args


def _make_parser(parser_class: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    from model_preparation.sources import add_pair_options

    return arguments.make_parser(partial(add_pair_options, otherwise="tiny"), parser_class)


def _job(args: argparse.Namespace) -> Job:
    from model_preparation.sources import pair_or_tiny

    pair = None if args.evaluator else pair_or_tiny(args)
    scores, elite = args.single_layer_scores, args.elite
    try:
        config = arguments.search_config(args, "quick" if pair is None else pair.preset)
    except SearchError as error:
        raise SearchError(f"{error}{'' if args.config is None else f' (with the settings in {args.config})'}") from None
    find_strategy(config.strategy)  # one that cannot be had fails before anything large is loaded
    return Job(
        config=config,
        pair=None if pair is None else pair.name,
        factory=args.evaluator,
        evaluation=None if pair is None else wiring.eval_config(args, pair.name),
        cluster=wiring.cluster_options(args),
        single_scores=prior_knowledge.read_single_scores(scores) if isinstance(scores, Path) else scores,
        elite=prior_knowledge.read_elite(elite) if isinstance(elite, Path) else list(elite or ()),
        args=args,
    )


def _make_search(job: Job, evaluator: Evaluator) -> Search:
    space = job.config.space(int(evaluator.num_layers))
    if job.single_scores is not None:
        where = _file_or_flag(job.args.single_layer_scores, "--single-layer-scores")
        prior_knowledge.check_scores(job.single_scores, space.num_layers, where)
    for layers in job.elite:
        try:
            space.check(layers)
        except SearchError as error:
            raise SearchError(f"{_file_or_flag(job.args.elite, '--elite')}: {error}") from error
    subjects = np.asarray(evaluator.subjects, dtype=np.int64)
    return Search(
        job.config,
        space,
        subjects,
        coarse_from=getattr(evaluator, "coarse_from", None),
        weights=getattr(evaluator, "weights", None),
        single_scores=job.single_scores,
        elite=job.elite,
    )


def _file_or_flag(given: object, flag: str) -> object:
    return given if isinstance(given, Path) else flag


def _search(job: Job, evaluator: Evaluator, search: Search, opened: run_folder.OpenedRun) -> int:
    from evaluation.journal import Journal
    from evaluation.remembering import Remembering, journal_header

    paths = opened.paths
    with logging_to(paths.log):
        _log.info("%s %s", "resuming the search in" if opened.is_resumed else "search in", paths.folder)
        if setting := getattr(evaluator, "setting", ""):
            _log.info("%s", setting)
        if opened.is_resumed and not paths.journal.exists():
            _log.warning("%s is missing: all questions are asked again; put it back to keep them", paths.journal)
        header = {**({} if job.factory is None else {"factory": job.factory}), **journal_header(evaluator)}
        if hasattr(evaluator, "report_to"):  # of several workers
            evaluator.report_to(paths.workers, paths.cluster)
        journal = Journal(paths.journal, header, evaluator.num_questions)
        remembering = Remembering(evaluator, journal, retry_failed=job.args.retry_failed)
        run = json.loads(paths.config.read_text(encoding="utf-8"))
        with closing(observers.Observers(job.args.log_to, paths.observers, run)) as watching:
            about = {"timestamp": paths.timestamp, **run["run"], "versions": run_folder.versions()}
            told = partial(
                result.document,
                run={**about, "conditions": header},
                subjects=np.asarray(evaluator.subjects, dtype=np.int64),
                subject_names=getattr(evaluator, "subject_names", ()),
            )
            report = live.LiveReport(paths, search, told)
            seconds = _ask_and_tell(search, remembering, watching, report)
            search.outcome.donor = ask_donor(search, remembering)
            document = told(search.outcome, seconds=seconds)
            report.finish()
            run_folder.write_json(paths.result, document)
            report.draw()
            found = _last_line(paths, document)
            watching.finish(found["question_evaluations"], {**found, "layers": str(search.outcome.final[0])})
        for line in result.table(document):
            _log.info("%s", line)
        _warn_of_failures(search)
        _log.info("result: %s", paths.result)
        if paths.report.exists():
            _log.info("report: %s", paths.report)
    print(json.dumps(_last_line(paths, document)), flush=True)
    _say_what_comes_next(paths, document)
    return 0


def _ask_and_tell(
    search: Search,
    remembering: Remembering,
    watching: observers.Observers | None = None,
    report: live.LiveReport | None = None,
) -> dict[str, float]:
    """Run a search to its end; returns seconds of evaluation by stage."""
    progress = Progress(search.forecast(), search.outcome, stream=sys.stderr if sys.stderr.isatty() else None)
    seconds: dict[str, float] = {}
    try:
        while request := search.ask():
            if _takes_too_long(search, request, remembering.seconds):
                _log.info("--max-hours %g: what is left of the time is for the hold-out", search.config.max_hours)
                search.stop()
                continue
            progress.begin(request)
            before = remembering.seconds
            answers = {}
            for layers, given in remembering.answers(request.batch, request.questions):
                answers[layers] = given
                progress.advance(request)
            search.tell(answers)
            took = remembering.seconds - before
            seconds[request.stage] = seconds.get(request.stage, 0.0) + took
            progress.end(request, took, remembering.seconds)
            if watching is not None:
                watching.log(progress.done, progress.values(request, took))
            if report is not None:
                report.note(request, progress.done, seconds, progress.best)
    finally:
        progress.close()
    return seconds


def _takes_too_long(search: Search, request: Request, seconds: float) -> bool:
    """Whether a request, and the hold-out after it, would run past --max-hours at the pace so far."""
    if search.config.max_hours is None or request.stage == CHECK or not search.ledger.spent:
        return False
    pace = seconds / search.ledger.spent
    return seconds + pace * (request.size + search.hold_out_cost) > 3600 * search.config.max_hours


def _warn_of_failures(search: Search) -> None:
    failed, count = search.ledger.failed, sum(usage.sets for usage in search.outcome.usage.values())
    if failed:
        named = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
        _log.warning("%d of %d layer sets could not be evaluated and were left out: %s", len(failed), count, named)


def _tell_finished(paths: run_folder.RunPaths, document: Mapping[str, Any]) -> int:
    print(f"run_search: this search is finished already; its result is {paths.result}", file=sys.stderr)
    live.complete(paths)
    for line in result.table(document):
        print(line, file=sys.stderr)
    print(json.dumps(_last_line(paths, document)), flush=True)
    _say_what_comes_next(paths, document)
    return 0


def _say_what_comes_next(paths: run_folder.RunPaths, document: Mapping[str, Any]) -> None:
    from evaluation.entry import last_line

    found, result_file = "+".join(map(str, document["final_results"][0]["layers"])), shlex.quote(str(paths.result))
    make = f"scripts/create_checkpoint.sh --from_result {result_file} --output_dir model_checkpoints/best"
    last_line(
        f"the search found {found}; make its checkpoint with: {make}",
        f"搜索完成，最优层组合为 {found}；生成 checkpoint：{make}",
    )


def _in_language(english: str, chinese: str) -> str:
    from evaluation.entry import in_language

    return in_language(english, chinese)


def _last_line(paths: run_folder.RunPaths, document: Mapping[str, Any]) -> dict[str, Any]:
    """What the last line on stdout says of a result."""
    best = document["final_results"][0]
    base = document["base"] or {}
    return {
        "layers": best["layers"],
        "accuracy": best["accuracy"],
        "standard_error": best["standard_error"],
        "questions": best["questions"],
        "holdout_accuracy": best["holdout_accuracy"],
        "full_accuracy": best["full_accuracy"],
        "base_accuracy": base.get("accuracy"),
        "base_questions": base.get("questions"),
        "base_holdout_accuracy": base.get("holdout_accuracy"),
        "donor_holdout_accuracy": (document.get("donor") or {}).get("holdout_accuracy"),
        "conclusion": document["conclusion"],
        "question_evaluations": document["usage"]["in_all"]["question_evaluations"],
        "seconds": document["usage"]["in_all"]["seconds"],
        "result": str(paths.result),
        "report": str(paths.report) if paths.report.exists() else None,
        "log": str(paths.log),
    }


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it to us and to the shell that passes it on to us
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:  # else we are ending already, and stay deaf to it
            signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("run_search", main)
