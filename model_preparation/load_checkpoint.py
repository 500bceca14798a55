"""Loads a checkpoint and lets it continue prompts, or chats with it.

cd model_preparation && python load_checkpoint.py --checkpoint ../model_checkpoints/best_4layer --prompt "Hello world"
python -m model_preparation.load_checkpoint --checkpoint model_checkpoints/best_4layer
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the project is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.entry import Parser
from model_preparation.options import add_device_options, positive, probability, temperature
from models.errors import ModelError

if TYPE_CHECKING:
    from model_preparation.decoding import Decoder
    from model_preparation.talking import Answer, Sampling
    from models.modeling_llamba import LlambaForCausalLM

_EXAMPLES = """\
examples:
  python load_checkpoint.py --checkpoint ../model_checkpoints/best_4layer --prompt "Hello world"
  python load_checkpoint.py --checkpoint DIR --prompt "What is a tensor?" --prompt "And a scalar?" --temperature 0.7
  python load_checkpoint.py --checkpoint DIR                       a conversation, on a terminal
  python load_checkpoint.py --checkpoint DIR --json < prompts.txt  one prompt a line

In a conversation an empty line or Ctrl-D ends, and Ctrl-C stops the answer. Where the tokenizer has a chat template,
prompts are spelled by it. Words go to stdout as they come, all else to stderr.
"""
_MARK = "> "
_ROOM = 4096
"""Tokens of a text for which --compile compiles at first."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file. With --json the last line printed is JSON."""
    arguments = _parse(argv)
    if arguments.seed is not None and not arguments.temperature and arguments.top_p is None:
        raise ModelError(f"--seed {arguments.seed} is about chance; give --temperature or --top_p as well")
    from model_preparation.checkpoints.info import read_info
    from model_preparation.device import Device, load_on
    from model_preparation.talking import Sampling

    info = read_info(arguments.checkpoint)
    device = Device.choose(arguments.gpu, arguments.dtype)
    model, tokenizer = load_on(device, arguments.checkpoint, info)
    layers = ", ".join(map(str, info.replaced_layers))
    print(f"{arguments.checkpoint}: layers {layers} from {info.donor_model}; on {device}", file=sys.stderr)
    if arguments.seed is not None:
        import torch

        torch.manual_seed(arguments.seed)
    chats = arguments.chat or (not arguments.prompt and _is_terminal())
    how = Sampling(
        max_new_tokens=arguments.max_new_tokens or (512 if chats else 50),
        temperature=arguments.temperature or None,
        top_p=arguments.top_p,
    )
    decoder = _compiled(model, how) if arguments.compile else None
    talk = _chat if chats else _answer_each
    answers = []
    for prompt, answer in talk(arguments, model, tokenizer, how, decoder):
        answers.append(_spell(prompt, answer))
        if answer.is_interrupted and not chats:
            raise KeyboardInterrupt
    if arguments.json:
        report = {"checkpoint": str(arguments.checkpoint), "layers": info.replaced_layers, "pair": info.pair}
        print(json.dumps(report | {"device": device.name, "dtype": device.dtype_name, "answers": answers}))
    return 0


def _compiled(model: LlambaForCausalLM, how: Sampling) -> Decoder:
    """A decoder that has compiled, before anybody waits for an answer."""
    from model_preparation.decoding import Decoder
    from model_preparation.device import memory_errors_named

    decoder = Decoder(model)
    with memory_errors_named(str(model.device), "compiling", "leave out --compile"):
        decoder.prepare(max(_ROOM, 2 * how.max_new_tokens))
    return decoder


def _answer_each(
    arguments: argparse.Namespace, model: LlambaForCausalLM, tokenizer: Any, how: Sampling, decoder: Decoder | None
) -> Iterator[tuple[str, Answer]]:
    """Answer prompts that know nothing of each other: those of the command line, else the lines of stdin."""
    from model_preparation.talking import answer, new_conversation

    asked = False
    for prompt in arguments.prompt or _lines():
        asked = True
        _show(prompt)
        yield prompt, answer(model, tokenizer, new_conversation(tokenizer, raw=arguments.raw), prompt, how, decoder)
    if not asked:
        raise ModelError("there is no prompt on stdin; give --prompt TEXT, or one prompt a line")


def _chat(
    arguments: argparse.Namespace, model: LlambaForCausalLM, tokenizer: Any, how: Sampling, decoder: Decoder | None
) -> Iterator[tuple[str, Answer]]:
    """Answer one turn after another, each knowing the ones before."""
    from model_preparation.talking import answer, new_conversation

    conversation = new_conversation(tokenizer, raw=arguments.raw)
    for prompt in _turns(arguments.prompt):
        yield prompt, answer(model, tokenizer, conversation, prompt, how, decoder)


def _lines() -> Iterator[str]:
    """Those of stdin that are not empty."""
    try:
        for line in sys.stdin or ():
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"stdin holds no text in UTF-8 ({error.reason}); write it in that encoding") from None


def _turns(first: Sequence[str]) -> Iterator[str]:
    """`first`, then what the user types, up to an empty line or the end."""
    is_typed = _is_terminal()
    for prompt in first if is_typed else chain(first, _lines()):
        _show(prompt)
        yield prompt
    if is_typed:
        yield from _typed()


def _show(prompt: str) -> None:
    print(_MARK + (prompt if prompt.isprintable() else ascii(prompt)), file=sys.stderr, flush=True)


def _typed() -> Iterator[str]:
    while True:
        print(_MARK, end="", file=sys.stderr, flush=True)
        try:
            line = input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not line.strip():
            return
        yield line


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _spell(prompt: str, answer: Answer) -> dict[str, Any]:
    """An answer as JSON values."""
    return {
        "prompt": prompt,
        "text": answer.text,
        "new_tokens": len(answer.tokens),
        "tokens_per_second": round(len(answer.tokens) / answer.seconds, 1),
        "interrupted": answer.is_interrupted,
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="load_checkpoint.py",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of a checkpoint")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to answer; may be given several times")
    add("--chat", action="store_true", help="a conversation, also where stdin is no terminal")
    add("--raw", action="store_true", help="continue prompts as they are, without the chat template")
    add("--max_new_tokens", "--max-new-tokens", type=positive, metavar="N", help="most tokens of an answer [50; 512]")
    add("--temperature", type=temperature, metavar="T", help="above 0: leave tokens to chance [0: the likeliest]")
    add("--top_p", "--top-p", type=probability, metavar="P", help="chance among the likeliest that make up P [1]")
    add("--seed", type=int, metavar="S", help="of chance [another each time]")
    add_device_options(parser)
    add("--compile", action="store_true", help="compile first, about a minute; then tokens come many times as fast")
    add("--json", action="store_true", help="end with a line of JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    from evaluation.entry import become_tool

    become_tool("load_checkpoint.py", main)
