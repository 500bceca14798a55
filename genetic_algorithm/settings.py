"""Settings of a search in a file: read as the flags that they stand for, and written complete.

A file is YAML, one `key: value` a line, its keys the names of the flags. The folder of a search does as well: its
config.json holds the complete settings.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from genetic_algorithm import arguments
from genetic_algorithm.config import SearchConfig
from genetic_algorithm.errors import SearchError

NO_SETTINGS = ("help", "config", "print_config", "dry_run", "join", "retry_failed")
"""Flags that say what is to be done this time; no file holds them."""
OF_ONE_RUN = ("preset", "output_dir", "base", "donor")
"""What complete settings leave out: they hold the preset's values, make a run anew, and name a pair in one word."""
MODELS = ("pair", "base", "donor")
DEVICES = ("gpu", "gpus", "cpu_workers", "ray_address")
ALTERNATIVES = (MODELS, DEVICES)
"""Who says one of these says all of them."""
_JOINED = ("gpus", "log_to", "elite", "must_include", "forbid", "single_layer_scores")
"""Lists that their flag takes in one word."""
_RESOLVED = ("mmlu_dir", "question_order", "num_fewshot", "dtype", "fast_dtype", "memory", "batch_tokens", "layers_dir")
"""What the `EvalConfig` knows better than the flags."""
_NONE_IS_A_VALUE = (arguments.limit, arguments.budget)
_HEAD = """\
# The complete settings of a search. python -m genetic_algorithm.run_search --config FILE makes it; flags and the
# environment win over the file. null is "not given": the default of the pair or of the machine.
"""

MakeParser = Callable[[Callable[..., argparse.ArgumentParser]], argparse.ArgumentParser]


def parse(
    make: MakeParser, parser_class: type[argparse.ArgumentParser], given: Sequence[str], environment: Mapping[str, str]
) -> argparse.Namespace:
    """The flags that were given, over the settings of --config where that is among them.

    Args:
        make: The parser of the flags, of the class that it is given.
        parser_class: That of the user's flags; it ends the program where these are wrong.
        given: The user's flags.
        environment: In which PAIR, BASE and DONOR win over a file.

    Raises:
        SearchError: The file cannot be read, or names the key and value in it that cannot be.
    """
    parser = make(parser_class)
    found = parser.parse_args(given)
    if found.config is None:
        return found
    in_file = flags(found.config, make)
    named = {_dest(word) for word in given if word.startswith("--")}
    named |= {name for name in MODELS if environment.get(name.upper())}
    for group in ALTERNATIVES:
        if named.intersection(group):
            in_file = {key: words for key, words in in_file.items() if key not in group}
    return parser.parse_args([*(word for words in in_file.values() for word in words), *given])


def flags(path: Path, make: MakeParser) -> dict[str, list[str]]:
    """By key, the words that say the same on the command line; of a key that is null, none.

    Raises:
        SearchError: as `parse`.
    """
    reader = make(partial(argparse.ArgumentParser, exit_on_error=False))
    actions = {_dest(name): action for action in reader._actions for name in action.option_strings}
    actions = {name: action for name, action in actions.items() if action.dest not in NO_SETTINGS}
    found: dict[str, list[str]] = {}
    for key, line, node in _entries(path):
        action = actions.get(key.replace("-", "_"))
        if action is None:
            close = difflib.get_close_matches(key.replace("-", "_"), actions, n=1, cutoff=0.0)
            raise SearchError(
                f"{path}, line {line}: there is no setting {key!r}; the nearest is {close[0]!r}, and --help lists all"
            )
        if action.dest in found:
            raise SearchError(f"{path}, line {line}: {key} is given twice; keep one")
        try:
            words = _words(action, node)
            reader.parse_args(words)
        except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
            told = getattr(error, "message", None) or str(error)
            raise SearchError(f"{path}, line {line}: {key}: {_shown(node)} cannot be ({told})") from None
        found[action.dest] = words
    return {key: words for key, words in found.items() if words}


def complete(
    args: argparse.Namespace, search: SearchConfig, evaluation: Any, known: Mapping[str, Any], make: MakeParser
) -> dict[str, Any]:
    """All settings of a search, as JSON values by the names of the flags.

    Args:
        args: The flags.
        search: What they and the preset make of the search.
        evaluation: Likewise the `EvalConfig`; None beside an evaluator of one's own.
        known: What was read from files that flags name, by these flags; the files may be gone by the next time.
        make: As in `parse`.
    """
    values: dict[str, Any] = vars(args) | asdict(search) | dict(known)
    left_out = {*NO_SETTINGS, *OF_ONE_RUN, *(arguments.MODEL_FLAGS if evaluation is None else ("evaluator",))}
    if evaluation is not None:
        values |= {name: getattr(evaluation, name) for name in ("pair", *_RESOLVED)}
        values["gpu"] = args.gpu or (None if any(values[name] for name in DEVICES[1:]) else "auto")
    if search.window is not None:
        values["window"] = ":".join(map(str, search.window))
    document = {}
    for action in make(argparse.ArgumentParser)._actions:
        if action.dest not in left_out:
            value = values[action.dest]
            is_none = value is None and action.type in _NONE_IS_A_VALUE
            document[action.dest] = "none" if is_none else str(value) if isinstance(value, Path) else value
    return document


def spelled(document: Mapping[str, Any]) -> str:
    """Complete settings as YAML."""
    import yaml  # late: nothing else here needs it

    plain = json.loads(json.dumps(document))
    return _HEAD + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _entries(path: Path) -> list[tuple[str, int, Any]]:
    """Key, line and YAML node of each setting in a file; values stay as they are written."""
    import yaml

    text = _text(path / "config.json" if path.is_dir() else path)
    try:
        root = yaml.compose(_settings_of_a_run(path, text), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise SearchError(f"{path}{where} is not YAML ({problem}); write settings as `population: 20`") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
        raise SearchError(f"{path} holds no settings; write them as `population: 20`, one a line")
    return [(str(key.value), key.start_mark.line + 1, node) for key, node in root.value]


def _settings_of_a_run(path: Path, text: str) -> str:
    """The settings in the config.json of a search; any other text as it is."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(document, dict) or "run" not in document:
        return text
    if not isinstance(document.get("settings"), dict):
        raise SearchError(
            f"{path} is of a search that kept no settings (an older version); give the flags of that search, "
            f"which stand there under `command`"
        )
    return spelled(document["settings"])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SearchError(f"--config {path} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        raise SearchError(f"--config {path} is not a text file ({error})") from None


def _words(action: argparse.Action, node: Any) -> list[str]:
    """A value as its flag takes it; checked by the flag's own parser afterwards."""
    flag = action.option_strings[0]
    if node.tag.endswith(":null"):
        return [f"{flag}=none"] if action.type in _NONE_IS_A_VALUE else []
    if node.id == "scalar" or action.dest in _JOINED:
        text = _joined(node)
        return [f"{flag}={text}"] if text or node.id == "scalar" else []
    if node.id != "sequence" or action.nargs != "+":
        raise argparse.ArgumentTypeError("one value is wanted")
    words = [_scalar(one) for one in node.value]
    if wrong := [word for word in words if word.startswith("-")]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is a flag, not a value")
    return [flag, *words] if words else []


def _joined(node: Any) -> str:
    """`11+13,17` for [[11, 13], 17], and `0:0.31,1:0.4` for {0: 0.31, 1: 0.4}."""
    if node.id == "sequence":
        return ",".join(
            "+".join(map(_scalar, one.value)) or "none" if one.id == "sequence" else _scalar(one) for one in node.value
        )
    if node.id == "mapping":
        return ",".join(f"{_scalar(layer)}:{_scalar(value)}" for layer, value in node.value)
    return _scalar(node)


def _scalar(node: Any) -> str:
    if node.id != "scalar":
        raise argparse.ArgumentTypeError("it is nested too deep")
    return str(node.value)


def _shown(node: Any) -> str:
    if node.id == "scalar":
        return repr(str(node.value)[:80])
    return {"sequence": "a list", "mapping": "a mapping"}[node.id]


def _dest(flag: str) -> str:
    return re.sub("-", "_", flag.partition("=")[0].lstrip("-"))
