"""Options that the tools which run a model share; importing this loads no torch."""

from __future__ import annotations

import argparse


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Add --gpu and --dtype; `device.Device.choose` reads them."""
    add = parser.add_argument
    add("--gpu", default="auto", metavar="N|cpu|auto", help="device [auto: GPU 0 where there is one]")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights [bfloat16; on the CPU float32]")


def layer(text: str) -> int:
    """A layer's number."""
    if not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no layer; give numbers with spaces between them, such as 11 13 17"
        )
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def temperature(text: str) -> float:
    """A number of at least 0; 0 leaves nothing to chance."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no temperature; give 0 or more")
    return value


def probability(text: str) -> float:
    """A number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to 1")
    return value
