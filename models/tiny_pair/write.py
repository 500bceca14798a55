"""Writes the files of the bundled pair: question files, lm-eval tasks, Hugging Face folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from models.tiny_pair.questions import SPLIT_SEEDS, SUBJECTS, documents
from models.tiny_pair.vocabulary import EOS, PAD, build_tokenizer, ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUPS = {"search": "tiny", "heldout": "tiny_heldout"}
"""Split -> lm-eval group; the subtasks of group g are g_knowledge, g_recall, g_two_hop, g_position."""

# Without the suffix .yaml: lm-eval must not take it for a task of its own.
_DEFAULTS = """\
# Shared by every task of this folder. The prompt is MMLU's, less its header line.
custom_dataset: !function utils.questions
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_questions(folder: Path) -> None:
    """Write the lm-eval tasks of both splits, a JSON-lines file each, into `folder`."""
    write_text(folder / "_tiny_default", _DEFAULTS)
    for split in SPLIT_SEEDS:
        group = GROUPS[split]
        tasks = [f"{group}_{subject}" for subject in SUBJECTS]
        write_text(
            folder / f"_{group}.yaml",
            f"group: {group}\ntask: [{', '.join(tasks)}]\n"
            "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 1.0}\n",
        )
        for subject, task in zip(SUBJECTS, tasks, strict=True):
            lines = [json.dumps(d) + "\n" for d in documents(subject, split)]
            write_text(folder / f"{task}.jsonl", "".join(lines))
            write_text(
                folder / f"{task}.yaml",
                f"include: _tiny_default\ntask: {task}\ntask_alias: {subject}\n"
                f"dataset_kwargs: {{file: {task}.jsonl}}\n",
            )


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Write a Hugging Face folder: configuration, bf16 weights, tokenizer, generation settings."""
    import torch
    from transformers import GenerationConfig

    model = model.to("cpu", torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=ids()[EOS], pad_token_id=ids()[PAD])
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
