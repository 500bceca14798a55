"""load_checkpoint.py: it says what the model says, remembers in conversations, and refuses in one line."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.entry import run_tool
from model_preparation import device as device_module
from model_preparation import load_model, talking
from model_preparation.load_checkpoint import main
from models.modeling_llamba import LlambaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role == 'user' and 'word1 ' or 'word2 ' }}{{ turn.content }} word3 {% endfor %}"
    "{% if add_generation_prompt %}word2{% endif %}"
)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def with_template(folder: Path, template: str) -> Path:
    """Give a checkpoint's tokenizer a chat template."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def talk(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Lines of stdout but the last, and the answers that the last one tells."""
    command = ["--checkpoint", str(folder), "--gpu", "cpu", "--max_new_tokens", "4", "--json", *options]
    assert main(command) == 0
    *lines, report = capsys.readouterr().out.splitlines()
    return lines, json.loads(report)["answers"]


def continued(folder: Path, text: str, tokens: int = 4) -> str:
    """What the model's own `generate` makes of a text."""
    model, tokenizer = load_model(folder, dtype=torch.float32)
    inputs = tokenizer(text, return_tensors="pt")
    settings = {"max_new_tokens": tokens, "do_sample": False}
    output = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **settings)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_prompts_are_continued_each_by_itself(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["Hello world", "word7 world"]
    lines, answers = talk(checkpoint, capsys, *(part for prompt in prompts for part in ("--prompt", prompt)))
    assert lines == [continued(checkpoint, prompt) for prompt in prompts]
    assert [answer["prompt"] for answer in answers] == prompts
    assert [answer["text"] for answer in answers] == lines
    assert all(1 <= answer["new_tokens"] <= 4 and answer["tokens_per_second"] > 0 for answer in answers)


def test_prompts_come_from_stdin_line_by_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello world\r\n\n  \nword7 world"))
    assert talk(checkpoint, capsys)[0] == [continued(checkpoint, prompt) for prompt in ("Hello world", "word7 world")]


def test_piped_prompts_are_shown_beside_their_answers(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word7\n\x1bword9\n"))
    assert (
        main(["--checkpoint", str(checkpoint), "--gpu", "cpu", "--max_new_tokens", "4", "--chat", "--prompt", "a"]) == 0
    )
    assert capsys.readouterr().err.splitlines()[1:] == ["> a", "> word7", r"> '\x1bword9'"]


@pytest.fixture
def contexts(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model is given to continue, each time."""
    seen: list[str] = []
    tokenizer = load_model(checkpoint)[1]
    generate = LlambaForCausalLM.generate

    def watched(self: LlambaForCausalLM, context_1T: torch.Tensor, **settings: Any) -> Any:
        seen.append(tokenizer.decode(context_1T[0]))
        return generate(self, context_1T, **settings)

    monkeypatch.setattr(LlambaForCausalLM, "generate", watched)
    return seen


@pytest.mark.parametrize("options", [[], ["--temperature", "5", "--seed", "3"]])
def test_compiled_decoding_says_the_same(
    options: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_preparation import decoding

    def chat(*more: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("word7\nword9\n"))
        return talk(checkpoint, capsys, "--chat", *options, *more)[0]

    expected, compile_step = chat(), decoding.compile_step
    torch._dynamo.reset()
    monkeypatch.setattr(decoding, "compile_step", lambda **_: compile_step(backend="eager"))
    assert chat("--compile") == expected
    assert len(expected) == 2
    torch._dynamo.reset()


def test_a_conversation_is_one_text_where_there_is_no_template(
    contexts: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word7\nword9\n"))
    lines, answers = talk(checkpoint, capsys, "--chat", "--prompt", "Hello world")
    assert len(answers) == 3
    second = f"Hello world {lines[0]} word7"
    assert contexts == ["Hello world", second, f"{second} {lines[1]} word9"]


def test_a_chat_template_spells_the_turns_unless_raw(
    contexts: list[str], copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_template(copy, TEMPLATE)
    monkeypatch.setattr(sys, "stdin", io.StringIO("word7\n"))
    lines, _ = talk(copy, capsys, "--chat", "--prompt", "Hello")
    talk(copy, capsys, "--raw", "--prompt", "Hello")
    first = "word1 Hello word3 word2"
    assert contexts == [first, f"{first} {lines[0]} word3 word1 word7 word3 word2", "Hello"]


def test_chance_is_asked_for_and_follows_the_seed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*options: str) -> list[str]:
        return talk(checkpoint, capsys, "--prompt", "Hello world", "--max_new_tokens", "20", *options)[0]

    hot = ["--temperature", "5", "--seed"]
    assert text(*hot, "3") == text(*hot, "3")
    assert text(*hot, "3") != text(*hot, "4")
    assert text("--temperature", "0") == text() == [continued(checkpoint, "Hello world", 20)]
    assert text("--top_p", "0.000001") == text()  # the likeliest token has that probability by itself


def test_settings_that_sample_in_the_checkpoint_are_no_default_and_no_noise(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "generation_config.json"
    of_llama = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "eos_token_id": [1, 2]}
    path.write_text(json.dumps(json.loads(path.read_text()) | of_llama))
    done = run_file("--checkpoint", str(copy), "--prompt", "Hello world", "--max_new_tokens", "4")
    assert done.returncode == 0
    assert done.stdout == continued(copy, "Hello world") + "\n"
    assert done.stderr.splitlines() == [f"{copy}: layers 1, 3 from {donor(copy)}; on cpu in float32", "> Hello world"]


def donor(folder: Path) -> str:
    """What the checkpoint says of its donor."""
    return str(json.loads((folder / "checkpoint_info.json").read_text())["donor_model"])


def run_file(*options: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the tool as the file it is, from its own folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "load_checkpoint.py", "--gpu", "cpu", *options],
        cwd=ROOT / "model_preparation",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **({"stdin": subprocess.DEVNULL} | how),
    )


def test_ctrl_c_ends_an_answer_but_not_the_conversation(
    contexts: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = talking._Printer.put

    def interrupted(self: talking._Printer, value: torch.Tensor) -> None:
        put(self, value)
        if len(self.tokens) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(talking._Printer, "put", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("word7\n"))
    lines, answers = talk(checkpoint, capsys, "--chat", "--prompt", "Hello world")
    assert [answer["interrupted"] for answer in answers] == [True, True]
    assert [len(line.split()) for line in lines] == [2, 2]
    assert contexts == ["Hello world", f"Hello world {lines[0]} word7"]
    command = ["--checkpoint", str(checkpoint), "--gpu", "cpu", "--prompt", "Hello", "--prompt", "world"]
    assert run_tool("load_checkpoint.py", main, command) == 130
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--prompt", ""], "the prompt '' has no tokens; give some text"),
        (["--prompt", "a\udcffb"], r"the prompt 'a\udcffb' is no text in UTF-8"),
        (["--prompt", "x", "--seed", "1"], "--seed 1 is about chance; give --temperature or --top_p"),
        (["--prompt", "x", "--temperature", "-1"], "-1 is no temperature"),
        (["--prompt", "x", "--temperature", "nan"], "nan is no temperature"),
        (["--prompt", "x", "--top_p", "0"], "0 is not above 0 and up to 1"),
        (["--prompt", "x", "--max_new_tokens", "0"], "0 is below 1"),
        (["--prompt", "x", "--gpu", "foo"], "--gpu foo is no device"),
        (["--prompt", "x", "--dtype", "int8"], "invalid choice: 'int8'"),
        ([], "there is no prompt on stdin; give --prompt TEXT"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    options: list[str],
    told: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert run_tool("load_checkpoint.py", main, ["--checkpoint", str(checkpoint), *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("load_checkpoint.py: error: ")]
    assert len(errors) == 1
    assert told in errors[0]


def test_bytes_on_stdin_that_are_no_text(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    assert run_tool("load_checkpoint.py", main, ["--checkpoint", str(checkpoint), "--gpu", "cpu"]) == 2
    assert "stdin holds no text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ({"chat_template": "{{ raise_exception('only system turns') }}"}, "chat template fails (only system turns)"),
        ({"format": 99}, "has format 99, from a newer GA Layer Search"),
    ],
)
def test_what_a_folder_has_wrong_with_it(
    spoil: dict[str, Any], told: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "chat_template" in spoil:
        with_template(copy, spoil["chat_template"])
    else:
        path = copy / "checkpoint_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | spoil))
    command = ["--checkpoint", str(copy), "--gpu", "cpu", "--prompt", "Hello"]
    assert run_tool("load_checkpoint.py", main, command) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    command[1] = str(copy / "tokenizer")
    assert run_tool("load_checkpoint.py", main, command) == 2
    assert "is not a checkpoint: it has no checkpoint_info.json" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_told_before_they_are_loaded(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "_free_bytes", lambda device: 1000)
    command = ["--checkpoint", str(checkpoint), "--gpu", "cpu", "--prompt", "Hello"]
    assert run_tool("load_checkpoint.py", main, command) == 2
    assert "GB in float32 and cpu has 0.0 GB free; give --dtype bfloat16" in capsys.readouterr().err
    assert main([*command, "--dtype", "bfloat16"]) == 0  # as on disk: read from there
    assert run_tool("load_checkpoint.py", main, [*command, "--dtype", "float16"]) == 2
    assert "close other programs" in capsys.readouterr().err


def test_running_out_of_memory_is_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(self: talking.Sampling, of_model: Any) -> None:
        torch.empty(1 << 50)  # what the CPU's allocator says is a plain RuntimeError

    monkeypatch.setattr(talking.Sampling, "settings", settings)
    command = ["--checkpoint", str(checkpoint), "--gpu", "cpu", "--prompt", "Hello"]
    assert run_tool("load_checkpoint.py", main, command) == 2
    assert "out of memory on cpu while answering 1 tokens; give a shorter prompt" in capsys.readouterr().err


class Terminal:
    """The tool with a terminal of its own."""

    def __init__(self, *options: str) -> None:
        self.screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "load_checkpoint.py", "--gpu", "cpu", *options],
            cwd=ROOT / "model_preparation",
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(inside),
        )
        os.close(inside)
        self.seen = ""

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Read the screen until `words` were there, and forget what was before."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, self.seen
            self.seen += os.read(self.screen, 4096).decode()
        self.seen = self.seen.partition(words)[2]

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.screen, keys.encode())


def _take_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


class Typed(io.StringIO):
    """What is typed on a terminal."""

    def isatty(self) -> bool:
        return True


def test_an_empty_line_ends_a_conversation(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("Hello world\n\nHello\n"))
    assert main(["--checkpoint", str(checkpoint), "--gpu", "cpu", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out == continued(checkpoint, "Hello world") + "\n"


def test_a_conversation_on_a_terminal(checkpoint: Path) -> None:
    terminal = Terminal("--checkpoint", str(checkpoint), "--max_new_tokens", "100000")
    try:
        terminal.wait_for("\n> ")
        terminal.type("Hello world\n")
        first = continued(checkpoint, "Hello world", 2)
        terminal.wait_for(first.split()[0])
        terminal.type("\x03")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)
