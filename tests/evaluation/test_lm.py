"""Our model of lm-eval beside lm-eval's own, HFLM: the same numbers, and what each says of bad input."""

from __future__ import annotations

import copy
import functools
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from evaluation import hybrid_lm as lm_module
from evaluation.entry import run_tool
from evaluation.errors import EvaluationError
from evaluation.hybrid_lm import HybridLM
from evaluation.lm import main
from evaluation.tasks import LoadedTasks, TaskSource, load_tasks
from models.errors import ModelError
from models.hybrid import HybridPair
from models.pairs import BUNDLED_TASKS, TINY_DIR
from models.tokenizer import load_tokenizer
from tests.evaluation.conftest import letter_docs, make_pair, make_tokenizer, phrase_docs, write_tasks
from tests.test_architecture import ROOT

# Float32 sums taken in another order: batches of another shape, chunks of the scan, padding.
TOLERANCE_NATS = 2e-4
LAYERS = (1, 2)
needs_tiny = pytest.mark.skipif(
    not (TINY_DIR / "base" / "model.safetensors").is_file(), reason="the bundled pair has no weights yet"
)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_pair().assemble(LAYERS)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model on disk."""
    made = tmp_path_factory.mktemp("models") / "a hybrid"
    model.save_pretrained(made)
    make_tokenizer().save_pretrained(made)
    return made


def theirs(model: Any, tokenizer: Any, **options: Any) -> Any:
    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), **{"batch_size": 3, **options})


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def asked(*pairs: tuple[str, str]) -> list[Instance]:
    return [request("loglikelihood", *pair) for pair in pairs]


def text(words: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(40)}" for _ in range(words))


PAIRS = [
    *((text(12), f" {letter}") for letter in "ABCD"),  # a row for all four
    *((text(9, 1), f" {phrase}") for phrase in ("w1", "w2 w3", "w2 w4", "w2 w3 w5 w6")),  # rows that share a beginning
    (text(9, 1) + "  ", "w1"),  # spaces go to the continuation
    (text(30, 2), " " + text(25, 3)),
    ("", "w1 w2"),
    ("", "<bos> w1"),
    ("<bos> w1 w2", " A"),
    ("?", " what ?"),
    (text(12), " A"),  # asked twice
]


def assert_same(ours: list[Any], expected: list[Any]) -> None:
    assert [best for _, best in ours] == [best for _, best in expected]
    assert np.allclose([value for value, _ in ours], [value for value, _ in expected], rtol=0, atol=TOLERANCE_NATS)
    assert {type(value) for value, _ in ours} == {float}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_log_likelihoods_are_those_of_hflm(bos: bool, batch_tokens: int, model: Any) -> None:
    tokenizer = make_tokenizer(bos=bos)
    pairs = [pair for pair in PAIRS if bos or "<bos>" not in "".join(pair)]
    ours = HybridLM(model, tokenizer, batch_tokens=batch_tokens).loglikelihood(asked(*pairs))
    assert_same(ours, theirs(model, tokenizer).loglikelihood(asked(*pairs)))


def test_greedy_continuations_are_told(model: Any, tokenizer: Any) -> None:
    context = text(12)
    words = [" ".join(tokenizer.convert_ids_to_tokens(range(3, 50))[i : i + 1]) for i in range(47)]
    answers = HybridLM(model, tokenizer).loglikelihood(asked(*((context, f" {word}") for word in words)))
    likeliest = int(np.argmax([value for value, _ in answers]))
    assert answers[likeliest][1]
    assert sum(best for _, best in answers) == 1


def test_in_half_precision_the_sums_are_rounded_as_those_of_hflm(model: Any, tokenizer: Any) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    ours = HybridLM(half, tokenizer).loglikelihood(asked(*PAIRS))
    values = [value for value, _ in ours]
    assert values == torch.tensor(values).to(torch.bfloat16).tolist()
    expected = [value for value, _ in theirs(half, tokenizer).loglikelihood(asked(*PAIRS))]
    assert np.allclose(values, expected, rtol=0.05)


def test_nothing_is_run_twice(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, read = [], HybridLM._read

    def counted(self: Any, batch: Any, *rest: Any) -> Any:
        lengths.append(len(batch.tokens_N))
        return read(self, batch, *rest)

    monkeypatch.setattr(HybridLM, "_read", counted)
    lm = HybridLM(model, tokenizer)
    lm.loglikelihood(asked(*((text(12), f" {letter}") for letter in "ABCD")))
    lm.loglikelihood(asked((text(20), " w1 w2 w3"), (text(20), " w4 w5 w6")))
    assert lengths == [1 + 12, (1 + 20) + 2 + 2]


@pytest.mark.parametrize("max_length", [None, 7, 1])
def test_rolling_log_likelihoods_are_those_of_hflm(max_length: int | None, model: Any, tokenizer: Any) -> None:
    texts = [request("loglikelihood_rolling", string) for string in (text(40), text(3), "", text(7), text(8, 5))]
    ours = HybridLM(model, tokenizer, max_length=max_length).loglikelihood_rolling(texts)
    expected = theirs(model, tokenizer, max_length=max_length).loglikelihood_rolling(texts)
    assert np.allclose(ours, expected, rtol=0, atol=10 * TOLERANCE_NATS)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_is_that_of_hflm(batch_size: int, model: Any, tokenizer: Any) -> None:
    settings = {"max_gen_toks": 9, "until": ["w3", "?"]}
    drawn = {"max_gen_toks": 6, "until": [], "do_sample": True, "temperature": 1.5}
    prompts = [request("generate_until", text(words, words), settings) for words in (3, 11, 5, 2)]
    prompts += [request("generate_until", text(4), drawn), request("generate_until", text(6), {"max_gen_toks": 3})]

    def generate(lm: Any) -> list[str]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return list(lm.generate_until(prompts))

    ours = generate(HybridLM(model, tokenizer, batch_size=batch_size))
    assert ours == generate(theirs(model, tokenizer, batch_size=batch_size))
    assert len(set(ours)) > 1


def decisions(lm: Any, loaded: LoadedTasks, limit: int) -> dict[tuple[str, int], tuple[int, float]]:
    """What lm-eval makes of each document: the choice taken, and its `acc`."""
    for task in loaded.tasks.values():
        task.set_fewshot_seed(1234)
    results = evaluate(lm, {"tasks": dict(loaded.tasks)}, limit=limit, bootstrap_iters=0)
    assert results is not None
    return {
        (name, sample["doc_id"]): (int(np.argmax([value for value, _ in sample["filtered_resps"]])), sample["acc"])
        for name, samples in results["samples"].items()
        for sample in samples
    }


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_decisions_on_tasks_are_those_of_hflm(num_fewshot: int, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    options = {"fewshot_split": "test", "num_fewshot": num_fewshot}
    subjects = {"toy_letters": letter_docs(23), "toy_phrases": phrase_docs(19)}
    write_tasks(
        tmp_path, subjects, options={"toy_letters": options, "toy_phrases": options | {"doc_to_choice": "choices"}}
    )
    loaded = load_tasks(TaskSource(("toy",), tmp_path))
    ours = decisions(HybridLM(model, tokenizer, batch_tokens=200), loaded, 30)
    assert ours == decisions(theirs(model, tokenizer), loaded, 30)
    assert len(ours) == 23 + 19


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A hybrid of the bundled pair, and its tokenizer."""
    pair = HybridPair.load(TINY_DIR / "base", TINY_DIR / "donor")
    return pair.assemble((2, 5)), load_tokenizer(TINY_DIR / "base")


@needs_tiny
def test_decisions_on_the_bundled_tasks_are_those_of_hflm(tiny: tuple[Any, Any]) -> None:
    loaded = load_tasks(TaskSource(("tiny",), BUNDLED_TASKS))
    ours = decisions(HybridLM(*tiny), loaded, 8)
    assert ours == decisions(theirs(*tiny), loaded, 8)
    assert 0 < sum(right for _, right in ours.values()) < len(ours)


@needs_tiny
def test_decisions_on_mmlu_are_those_of_hflm(tiny: tuple[Any, Any], mmlu_dir: Path) -> None:
    loaded = load_tasks(TaskSource(("mmlu_global_facts", "mmlu_anatomy"), mmlu_dir=mmlu_dir, num_fewshot=1))
    assert decisions(HybridLM(*tiny), loaded, 4) == decisions(theirs(*tiny), loaded, 4)


def test_a_text_longer_than_the_model_is_cut_on_the_left(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [(text(30), " A"), (text(30), " B"), (text(6), " w1 w2 w3"), (text(2), " " + text(10))]
    with caplog.at_level(logging.WARNING, "evaluation.hybrid_lm"):
        ours = HybridLM(model, tokenizer, max_length=10).loglikelihood(asked(*pairs))
    assert [record.getMessage() for record in caplog.records if record.name == "evaluation.hybrid_lm"] == [
        "3 texts are longer than 10 tokens: cut on the left"
    ]
    assert_same(ours, theirs(model, tokenizer, max_length=10).loglikelihood(asked(*pairs)))


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (("w1 w2", ""), "request '' after 'w1 w2': the continuation has no tokens"),
        (("", ""), "request '' after '': the continuation has no tokens"),
        (("", "<bos>"), "request '<bos>' after '': the continuation has no tokens"),
        (("w1", " " + text(11)), "the continuation has 11 tokens, the model takes 10"),
    ],
)
def test_what_cannot_be_scored_is_named(pair: tuple[str, str], told: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises(EvaluationError) as raised:
        HybridLM(model, tokenizer, max_length=10).loglikelihood(asked(("w1", " A"), pair))
    assert told in str(raised.value)


def test_nothing_asked_is_nothing_answered(model: Any, tokenizer: Any) -> None:
    lm = HybridLM(model, tokenizer)
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == lm.generate_until([]) == []


@pytest.mark.parametrize("layer", [0, 1])
def test_scores_that_are_not_numbers_name_the_model(layer: int, model: Any, tokenizer: Any) -> None:
    broken = copy.deepcopy(model)
    broken.backbone.layers[layer].mlp.down_proj.weight[0, 0] = float("nan")
    lm = HybridLM(broken, tokenizer, name="best_4layer")
    for answer in (
        lambda: lm.loglikelihood(asked(("w1", " A"))),
        lambda: lm.loglikelihood_rolling([request("loglikelihood_rolling", text(5))]),
        lambda: lm.generate_until([request("generate_until", text(5), {"max_gen_toks": 3})]),
    ):
        with pytest.raises(EvaluationError, match="best_4layer gives scores that are not numbers; check its weights"):
            answer()


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A device that takes 30 tokens at a time; the lengths of the batches that it took."""
    taken, read = [], HybridLM._read

    def limited(self: Any, batch: Any, *rest: Any) -> Any:
        if len(batch.tokens_N) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        taken.append(len(batch.tokens_N))
        return read(self, batch, *rest)

    monkeypatch.setattr(HybridLM, "_read", limited)
    return taken


def test_out_of_memory_is_met_by_smaller_batches(
    small_memory: list[int], model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [pair for pair in PAIRS if len(" ".join(pair).split()) < 30]
    with caplog.at_level(logging.WARNING, "evaluation.hybrid_lm"):
        ours = HybridLM(model, tokenizer, batch_tokens=500).loglikelihood(asked(*pairs))
    assert_same(ours, theirs(model, tokenizer).loglikelihood(asked(*pairs)))
    assert max(small_memory) <= 30
    assert len(small_memory) > 1
    assert any("out of memory on cpu: going on with" in record.getMessage() for record in caplog.records)


def test_one_text_that_does_not_fit_is_an_error(small_memory: list[int], model: Any, tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match="out of memory on cpu, even for one text of 51 tokens; stop"):
        HybridLM(model, tokenizer).loglikelihood(asked(("w1", " A"), (text(50), " A")))


def test_answers_are_given_to_the_cache_of_lm_eval(model: Any, tokenizer: Any) -> None:
    class Hook:
        def __init__(self) -> None:
            self.kept: dict[Any, Any] = {}

        def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
            self.kept[kind, arguments] = answer

    lm, hook = HybridLM(model, tokenizer), Hook()
    lm.set_cache_hook(hook)
    answers = lm.loglikelihood(asked(*PAIRS))
    assert hook.kept == {("loglikelihood", pair): answer for pair, answer in zip(PAIRS, answers, strict=True)}
    hook.kept.clear()
    [total] = lm.loglikelihood_rolling([request("loglikelihood_rolling", "w1 w2")])
    assert hook.kept == {("loglikelihood_rolling", ("w1 w2",)): total}


def test_a_folder_is_a_model_and_the_registry_knows_it(folder: Path, model: Any, tokenizer: Any) -> None:
    assert get_model("hybrid") is HybridLM
    lm = HybridLM.create_from_arg_string(
        f"pretrained={folder},batch_tokens=64", {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    )
    assert (lm.name, lm.batch_tokens, lm.batch_size, lm.max_length) == (str(folder), 64, 2, 512)
    assert_same(lm.loglikelihood(asked(*PAIRS)), HybridLM(model, tokenizer).loglikelihood(asked(*PAIRS)))
    info = lm.get_model_info()
    assert info["model_layers"] == list(LAYERS)
    assert info["model_dtype"] == "torch.float32"
    assert info["model_num_parameters"] == model.num_parameters()


def test_the_dtype_of_a_folder_is_its_own_or_the_one_given(folder: Path, model: Any, tmp_path: Path) -> None:
    assert HybridLM(folder, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    assert HybridLM(tmp_path, folder, device="cpu").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dtype": "int8"}, "dtype=int8 is unknown; give auto, float32"),
        ({"device": "cuda:99"}, "device cuda:99 is not there"),
        ({"peft": "x", "delta": "y"}, "no argument delta, peft; it takes pretrained"),
        ({"batch_tokens": 0}, "batch_tokens=0 is no number of tokens"),
        ({"batch_tokens": "many"}, "batch_tokens=many is no number of tokens"),
        ({"max_length": -1}, "max_length=-1 is no number of tokens"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(EvaluationError) as raised:
        HybridLM(folder, **{"device": "cpu", **arguments})
    assert told in str(raised.value)


def test_folders_that_are_no_model(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ModelError, match=r"config.json does not exist"):
        HybridLM(tmp_path, device="cpu")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="there is no tokenizer in"):
        HybridLM(tmp_path, device="cpu")


TEMPLATE = (
    "{% for m in messages %}what {{ m['content'] }} ? {% endfor %}{% if add_generation_prompt %}Answer {% endif %}"
)


def test_the_command_line_of_lm_eval_runs_a_hybrid(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.tasks

    few = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)  # or it reads thousands of files
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)  # it stays for the tests that follow
    tasks = write_tasks(tmp_path / "tasks", {"toy_letters": letter_docs(9)})
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "plain")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chatty")

    def ask(spoken: str) -> int:
        model_args = f"pretrained={folder},tokenizer={tmp_path / spoken}"
        command = ["--model", "hybrid", "--model_args", model_args, "--tasks", "toy", "--include_path", str(tasks)]
        command += ["--output_path", str(tmp_path / "out"), "--log_samples", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["lm", *command, "--apply_chat_template"])
        return run_tool("lm", main)

    assert ask("chatty") == 0
    assert "|toy|" in capsys.readouterr().out.replace(" ", "")
    [samples] = (tmp_path / "out").glob("*/samples_toy_letters_*.jsonl")
    lines = samples.read_text().splitlines()
    assert len(lines) == 9
    assert all('"arg_0": "what w' in line and '? Answer "' in line for line in lines)
    assert ask("plain") == 2
    assert f"lm: error: the tokenizer of {folder} has no chat template" in capsys.readouterr().err


def test_the_help_of_the_command_line_imports_no_torch() -> None:
    code = "import sys; from evaluation.lm import main; sys.argv = ['lm', '--help']\ntry: main()\n"
    code += "except SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False).returncode == 0


def test_making_a_model_says_nothing(model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    before = tokenizer.pad_token
    with caplog.at_level(logging.WARNING):
        lm_module.HybridLM(model, tokenizer)
    assert not caplog.records
    assert tokenizer.pad_token == before
