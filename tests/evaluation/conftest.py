"""Small real things that the tests of evaluation share: a tokenizer, task folders, the shared MMLU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

READER = """
import json
from pathlib import Path
import datasets

def questions(*, file, **_metadata):
    lines = (Path(__file__).parent / file).read_text().splitlines()
    return datasets.DatasetDict(test=datasets.Dataset.from_list([json.loads(line) for line in lines]))
"""

Doc = dict[str, Any]


def letter_docs(count: int, seed: int = 0) -> list[Doc]:
    """Questions to be answered by a letter; a little longer and a little shorter."""
    return [
        {
            "question": " ".join(f"w{(i * 7 + j * (3 + seed)) % 40}" for j in range(4 + i % 5)) + " Answer",
            "answer": (i * i + seed) % 4,
        }
        for i in range(count)
    ]


def phrase_docs(count: int) -> list[Doc]:
    """Questions with two to four choices of one to three words, some of them sharing all but the last word."""
    phrases = [["w1", "w2 w3", "w4 w5 w6"], ["w7 w8", "w7 w9"], ["w1", "w2", "w3", "w10 w11"]]
    return [
        {
            "question": f"w{i % 40} w{(i * 11) % 40} what ?",
            "choices": phrases[i % 3],
            "answer": i % len(phrases[i % 3]),
        }
        for i in range(count)
    ]


def write_tasks(
    folder: Path,
    subjects: Mapping[str, Sequence[Doc]],
    *,
    group: str = "toy",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a task folder: a group of subjects, each a YAML file over JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reader.py").write_text(READER)
    for name, docs in subjects.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        config = {
            "task": name,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "dataset_kwargs": {"file": f"{name}.jsonl"},
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
            **(options or {}).get(name, {}),
        }
        lines = ["custom_dataset: !function reader.questions"]
        lines += [f"{key}: {json.dumps(value)}" for key, value in config.items()]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    (folder / "_group.yaml").write_text(
        f"group: {group}\ntask: {json.dumps(list(subjects))}\n"
        'aggregate_metric_list: [{"metric": "acc", "weight_by_size": true}]\n'
    )
    return folder


def make_tokenizer(*, bos: bool = True) -> Any:
    """A real word-level tokenizer, with BOS added to every text like Llama's or without BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<unk>",
        "<bos>",
        "<eos>",
        "A",
        "B",
        "C",
        "D",
        "Answer",
        "what",
        "?",
        *(f"w{i}" for i in range(40)),
    ]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", words.index("<bos>"))]
        )
    names = {"bos_token": "<bos>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", **names)


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    """Two subjects with letters to give, and one with phrases."""
    return write_tasks(
        tmp_path / "tasks",
        {"toy_short": letter_docs(23), "toy_long": letter_docs(17, seed=1), "toy_phrases": phrase_docs(19)},
        options={"toy_phrases": {"doc_to_choice": "choices"}},
    )


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what `datasets` converts out of the home folder."""
    import datasets

    before, datasets.config.HF_DATASETS_CACHE = (
        datasets.config.HF_DATASETS_CACHE,
        tmp_path_factory.mktemp("datasets"),
    )
    yield datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def mmlu_dir(datasets_cache: Path) -> Path:
    """The local copy of MMLU, where there is one."""
    shared = Path(os.environ.get("GA_SHARED", ROOT.parent / "shared"))
    if not (shared / "mmlu").is_dir():
        pytest.skip(f"no copy of MMLU in {shared} (set GA_SHARED)")
    return shared / "mmlu"


TaskWriter = Callable[..., Path]


@pytest.fixture
def tasks_writer() -> TaskWriter:
    return write_tasks


def make_pair(*, depth: int = 4, width: int = 32, vocab_size: int = 50, seed: int = 0) -> Any:
    """A HybridPair of random weights, large enough for layers to matter, and of uneven head counts."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from models.configuration_llamba import LlambaConfig
    from models.hybrid import HybridPair
    from models.modeling_llamba import LlambaForCausalLM

    # Tests must not move the random numbers that others draw.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = LlambaForCausalLM(
            LlambaConfig(
                vocab_size=vocab_size,
                d_model=width,
                n_layer=depth,
                tie_embeddings=True,
                mlp_cfg={"intermediate_size": 2 * width},
                ssm_cfg={"d_state": 4, "n_v_heads": 4, "n_qk_heads": 2, "chunk_size": 8},
                max_position_embeddings=512,
            )
        )
        donor_config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            attn_implementation="sdpa",
        )
        donors = [LlamaDecoderLayer(donor_config, i).eval() for i in range(depth)]
        for module in (base, *donors):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=1.5 / width**0.5)
    return HybridPair(base.eval().requires_grad_(False), donors, donor_config)
