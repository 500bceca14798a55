"""Tells the shell scripts which pair they work on and what they need to know of it, one fact at a time.

    python -m model_preparation.pair_facts name --base ./my_llamba --donor ./my_llama
    python -m model_preparation.pair_facts settings --config mine.yaml
    python -m model_preparation.pair_facts search_options --pair tiny --seed 3

Where nothing names a pair it is the one that suits the GPU, whatever layers were extracted before.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.sources import add_pair_options, announce, asked_pair, suitable_pair
from models.pairs import Pair


def main(argv: Sequence[str] | None = None) -> int:
    """Print one fact on one line; of `settings`, the flags that a file stands for, one a line.

    `search_options` prints nothing: it refuses options that a search would refuse, before it waits in a queue.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["search_options"]:
        from genetic_algorithm import run_search

        run_search.parse(given[1:])
        return 0
    parser = Parser(
        prog="pair_facts.py",
        description=(__doc__ or "").split("\n", 1)[0],
        examples=(
            "python -m model_preparation.pair_facts name --base ./my_llamba --donor ./my_llama",
            "python -m model_preparation.pair_facts settings --config mine.yaml",
            "python -m model_preparation.pair_facts search_options --pair tiny --seed 3",
        ),
    )
    facts = {"name": _name, "donor": _donor, "one_layer": _one_layer, "unseen_questions": _unseen_questions}
    parser.add_argument("fact", choices=(*facts, "settings", "search_options"), help="which one")
    add_pair_options(parser, otherwise="by the GPU")
    parser.add_argument("--config", type=Path, metavar="FILE", help="of which the settings are told")
    arguments = parser.parse_args(given)
    if arguments.fact == "settings":
        if arguments.config is None:
            parser.error("settings are those of a file; give --config FILE")
        from genetic_algorithm import settings  # late: other facts are told without them, in a third of the time
        from genetic_algorithm.arguments import make_parser

        found = settings.flags(arguments.config, partial(make_parser, add_pair_options))
        print("\n".join(word for words in found.values() for word in words))
        return 0
    asked = asked_pair(arguments.pair, arguments.base, arguments.donor)
    pair = asked.pair if asked else announce(suitable_pair())
    print(facts[arguments.fact](pair))
    return 0


def _name(pair: Pair) -> str:
    """What `--pair` takes for it, whatever the options were."""
    return pair.name


def _donor(pair: Pair) -> str:
    """What extract_layers.py writes as the source of its layers."""
    return pair.donor.name


def _one_layer(pair: Pair) -> str:
    """The best known single layer, else the first."""
    alone = [best.layers[0] for best in pair.known_best() if len(best.layers) == 1]
    return str(alone[0] if alone else 0)


def _unseen_questions(pair: Pair) -> str:
    """Options of test_checkpoint.py for questions that the search does not know, where the pair has such."""
    return shlex.join(["--tasks", *pair.unseen_tasks]) if pair.unseen_tasks else "--limit 50"


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("pair_facts.py", main)
