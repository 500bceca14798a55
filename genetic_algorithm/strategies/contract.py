"""Holds a strategy, which may be a user's own, to what every strategy owes a search; one clear line where it fails."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from genetic_algorithm.errors import SearchError
from genetic_algorithm.layer_set import LayerSet, SearchSpace
from genetic_algorithm.ledger import Ledger, Request
from genetic_algorithm.questions import HOLDOUT
from genetic_algorithm.strategies.strategy import Setting, StageForecast, Strategy

_NEEDED = ("stages", "run", "ranking", "forecast", "details")
_BESIDE_STAGES: dict[str, type] = {"estimates": dict, "patterns": list, "ranked_by": str}
_ASK = "let it `yield from ledger.wanted(...)`"
_log = logging.getLogger(__name__)


def held(name: str, maker: Callable[[Setting], Any]) -> Callable[[Setting], Strategy]:
    """What makes a user's strategy, whose errors are told in one line, with the line of its file.

    Args:
        name: as on the command line.
        maker: what it names.

    Raises:
        SearchError: if it is not made of one setting; when it is made, if it lacks what a strategy has.
    """
    try:
        inspect.signature(maker).bind(None)
    except TypeError:
        raise SearchError(
            f"--strategy {name} is not made of one `setting`; begin it with `def __init__(self, setting):`"
        ) from None
    except ValueError:  # it has no signature that could be read
        pass
    return partial(_make, name, maker)


def _make(name: str, maker: Callable[[Setting], Any], setting: Setting) -> Strategy:
    with _told(name, maker, "__init__"):
        found = maker(setting)
    what = f"--strategy {name} made a {type(found).__name__}"
    if lacking := [needed for needed in _NEEDED if not hasattr(found, needed)]:
        raise SearchError(f"{what}, which has no {lacking[0]}; a strategy has {', '.join(_NEEDED)}")
    if not isinstance(found.stages, (tuple, list)) or not all(isinstance(stage, str) for stage in found.stages):
        raise SearchError(f'{what}, whose stages are {_spelled(found.stages)}; name them, as in ("mine", VERIFY)')
    return Own(name, found, setting)


class Own:
    """A user's strategy, of which each word is checked.

    Args:
        name: as on the command line.
        strategy: what was made by that name.
        setting: what it was made of.
    """

    def __init__(self, name: str, strategy: Any, setting: Setting) -> None:
        self._name, self._strategy, self._setting = name, strategy, setting
        self._warned: set[str] = set()
        self.stages: tuple[str, ...] = tuple(strategy.stages)

    def __getattr__(self, attribute: str) -> Any:
        """What it has beside the contract, such as patterns for the report."""
        return getattr(self._strategy, attribute)

    def run(self) -> Iterator[Request]:
        """Its requests, which `check_request` is for."""
        with _told(self._name, self._strategy, "run"):
            found = self._strategy.run()
            if not hasattr(found, "__iter__"):
                raise SearchError(f"`run` returned {_spelled(found)}, which holds no requests; {_ASK}")
            yield from found

    def ranking(self) -> list[LayerSet]:
        """Its ranking: sets of the space, which have answers."""
        ledger, space = self._setting.ledger, self._setting.space
        with _told(self._name, self._strategy, "ranking"):
            found = self._strategy.ranking()
            if not isinstance(found, (list, tuple)):
                raise SearchError(f"`ranking` returned {_spelled(found)}, not a list of sets, best first")
            for layers in found:
                if not isinstance(layers, LayerSet):
                    raise SearchError(f"`ranking` holds {_spelled(layers)}, which is no LayerSet, as LayerSet((0, 2))")
                if not space.contains(layers):
                    raise SearchError(f"`ranking` holds {layers}, which is not in the space: {_outside(space, layers)}")
                if ledger.best_score(layers) is None:
                    raise SearchError(f"`ranking` holds {layers}, which has no score; rank sets of `ledger.known`")
            return list(found)

    def forecast(self) -> list[StageForecast]:
        """Its forecast: every stage, in numbers."""
        with _told(self._name, self._strategy, "forecast"):
            found = self._strategy.forecast()
            if not isinstance(found, (list, tuple)) or not all(isinstance(item, StageForecast) for item in found):
                raise SearchError(f"`forecast` returned {_spelled(found)}, not a list of StageForecast, one a stage")
            named = [item.stage for item in found]
            if sorted(named) != sorted(self.stages):
                raise SearchError(
                    f"`forecast` is of the stages {', '.join(named) or 'none'}, but its stages are "
                    f"{', '.join(self.stages)}; give one StageForecast for each"
                )
            for item in found:
                for number in (item.sets, item.questions, item.typical):
                    if not isfinite(number) or number < 0:
                        raise SearchError(
                            f"`forecast` of stage {item.stage} says {number}; give the sets and questions that it asks "
                            "where there is no budget"
                        )
            return list(found)

    def details(self) -> dict[str, Any]:
        """Its details; what is no JSON is left out with a warning: the search that they tell of is done."""
        try:
            with _told(self._name, self._strategy, "details"):
                found = self._strategy.details()
                if not isinstance(found, Mapping):
                    raise SearchError(f"`details` returned {_spelled(found)}, not a dict by stage")
        except SearchError as error:
            self._warn("", str(error))
            return {}
        flaws = {key: _flaw(key, value, self.stages) for key, value in found.items()}
        for key, flaw in flaws.items():
            if flaw:
                self._warn(str(key), f"strategy {self._name}: `details` of {key!r} {flaw}")
        return {key: value for key, value in found.items() if not flaws[key]}

    def _warn(self, key: str, told: str) -> None:
        if key not in self._warned:  # the report asks for them again and again
            self._warned.add(key)
            _log.warning("%s: the result goes without them", told)


def check_request(request: Any, stages: tuple[str, ...], space: SearchSpace, ledger: Ledger) -> None:
    """Raise SearchError unless a request is one, of a stage, within the budget, and of what may be asked."""
    if not isinstance(request, Request):
        raise SearchError(f"it yields {_spelled(request)}, which is no Request; {_ASK}")
    if request.stage not in stages:
        raise SearchError(f"it asks in stage {request.stage!r}, but its stages are {', '.join(stages)}; name it there")
    if not request.size:
        raise SearchError(f"it asks nothing; {_ASK}, which leaves out what is known")
    if np.isin(request.questions, ledger.parts[HOLDOUT]).any():
        raise SearchError("it asks questions of the hold-out, which takes no part in the choice; ask FULL, or a rung")
    if request.size > ledger.left:
        raise SearchError(
            f"it asks {request.size:,} questions where its budget has {int(ledger.left):,} left; let it ask by "
            "`ledger.wanted`, which keeps to the budget"
        )
    for layers in request.batch:
        if not isinstance(layers, LayerSet):
            raise SearchError(f"it asks for {_spelled(layers)}, which is no LayerSet; write LayerSet((0, 2))")
        if not space.allows(layers):
            raise SearchError(
                f"it asks for {layers}, which is not in the space: {_outside(space, layers)}; take sets of "
                "`space.random` and `space.neighbours`, or ask `space.contains`"
            )


def _outside(space: SearchSpace, layers: LayerSet) -> str:
    """Why a set is not in the space."""
    try:
        space.check(layers)
    except SearchError as error:
        return str(error)
    return ""


def _flaw(key: object, value: Any, stages: tuple[str, ...]) -> str:
    """Why an entry of the details cannot stand in a result; empty where it can."""
    wanted: Any = dict if key in stages else _BESIDE_STAGES.get(str(key), object)
    try:
        json.dumps({key: value})
    except (TypeError, ValueError, RecursionError) as error:
        return f"is not JSON ({error}; a set is list(layers.indices))"
    if not isinstance(value, wanted):
        return f"is {_spelled(value)}, no {wanted.__name__}"
    if key in stages and not isinstance(value.get("statement", ""), str):
        return f"has the statement {_spelled(value['statement'])}, no text"
    if key == "estimates" and not all(isinstance(number, (int, float)) for number in value.values()):
        return "holds what is no number"
    return ""


@contextmanager
def _told(name: str, owner: Any, method: str) -> Iterator[None]:
    """Name the strategy, and the line of its file, in whatever goes wrong."""
    try:
        yield
    except OSError:  # of the machine, and told as such
        raise
    except Exception as error:
        what = str(error)
        if not isinstance(error, SearchError):
            what = f"{type(error).__name__} in `{method}`: {error}; mend it, or see all with GA_DEBUG=1"
        raise SearchError(f"strategy {name}{_place(error, owner)}: {what}") from error


def _place(error: Exception, owner: Any) -> str:
    """The last line of the owner's own file that an error came through; empty where there is none."""
    file = getattr(sys.modules.get(str(getattr(owner, "__module__", ""))), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""


def _spelled(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
