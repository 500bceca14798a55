"""The texts in a checkpoint folder: README.md, a model card for hubs; README.txt, how to use the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from model_preparation.checkpoints.info import CheckpointInfo
    from models.pairs import Pair

_README_TXT = """\
{name}
{underline}
{summary}

{scores}

What is in this folder
{contents}

How to load it, from the folder that holds {name}
{ways}

Then

     inputs = tokenizer("Hello world", return_tensors="pt").to(model.device)
     print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))
"""

_CONTENTS = {
    "safetensors": """\
  config.json, model*.safetensors, generation_config.json, tokenizer*, *.py
                         a Hugging Face model; the .py files are its modelling code""",
    "model": "  model.pt               the whole model in PyTorch's format",
    "state_dict": "  model_state_dict.pt    its tensors by name",
    "": """\
  tokenizer/             the tokenizer once more, by itself
  checkpoint_info.json   what this is: layers, scores, sources, checksums
  README.md              a model card""",
}

_WAYS = {
    "model": """\
From model.pt, in an environment of GA Layer Search (its set-up, or `pip install -e .` in a clone of it). PyTorch 2.6
   and later open only what they know to be safe; there they know this file, which holds no code:

     import torch
     model = torch.load({model_pt!r})

     from transformers import AutoTokenizer
     tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})

   If torch answers "Weights only load failed ... model_preparation.saved_model.rebuild", GA Layer Search can be
   imported there but is not installed; then write before torch.load

     from model_preparation.saved_model import allow_in_weights_only_load
     allow_in_weights_only_load()""",
    "": """\
With GA Layer Search; this needs no unsafe unpickling and runs no code of this folder:

     from model_preparation import load_model
     model, tokenizer = load_model({name!r})""",
    "state_dict": """\
From the state dict, with GA Layer Search; the base takes on the layers that the file names:

     import torch
     from model_preparation.modelscope_utils import get_model_modelscope
     model, tokenizer, _, _ = get_model_modelscope('unaligned_llamba', pair={pair!r})
     model.load_state_dict(torch.load({state!r}))""",
    "safetensors": """\
Anywhere, with nothing but torch and transformers 5.17 or later; this runs the .py files of this folder:

     from transformers import AutoModelForCausalLM, AutoTokenizer
     model = AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True, dtype="auto")
     tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})""",
}


def read_me(info: CheckpointInfo, name: str) -> str:
    """README.txt of the checkpoint folder `name`."""
    paths = {
        "name": name,
        "pair": info.pair,
        "model_pt": f"{name}/model.pt",
        "state": f"{name}/model_state_dict.pt",
        "tokenizer": f"{name}/tokenizer",
    }
    there = {"", *info.formats}
    ways = [way for format_, way in _WAYS.items() if format_ in there]
    return _README_TXT.format(
        name=name,
        underline="=" * len(name),
        summary=_summary(info),
        scores=_scores(info),
        contents="\n".join(line for format_, line in _CONTENTS.items() if format_ in there),
        ways="".join(f"\n{number}. {way.format(**paths)}\n" for number, way in enumerate(ways, 1)).rstrip(),
    )


def model_card(info: CheckpointInfo, name: str, pair: Pair) -> str:
    """README.md of the checkpoint folder `name`, with the front matter hubs read.

    Args:
        info: of the checkpoint.
        name: of the folder.
        pair: whose hub ids and licence go into the card, and whose tasks its score is about unless the score names
            its own.
    """
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llamba", "mamba2", "llama", "hybrid", "merge", "custom_code"],
    }
    if known := [source.hub_id for source in (pair.base, pair.donor) if source.hub_id]:
        front |= {"base_model": known, "base_model_relation": "merge"}  # ids only: hubs refuse anything else
    if pair.license:
        front["license"] = pair.license
    if results := _model_index(info, name, pair.tasks):
        front["model-index"] = results
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{header}---\n\n# {name}\n\n{_summary(info)}\n\n{_scores(info)}\n\n"
        f"{_licence(pair)}## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True, dtype='auto')\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}, trust_remote_code=True)\n```\n\n"
        f"## Origin\n\n{_origin(info, pair)}\n\n"
        "README.txt says what each file is and how else it loads; checkpoint_info.json holds the details.\n"
    )


def _summary(info: CheckpointInfo) -> str:
    layers = ", ".join(map(str, info.replaced_layers))
    text = (
        f"{info.base_model} (Llamba) in which {len(info.replaced_layers)} of {info.num_layers} layers "
        f"({layers}) are those of {info.donor_model} (Llama). "
        f"{info.num_parameters:,} parameters in {info.dtype}."
    )
    return f"{info.description}\n\n{text}" if info.description else text


def _origin(info: CheckpointInfo, pair: Pair) -> str:
    """What this was made from and with, as a list."""
    models = (
        ("Base", pair.base, info.base_model, info.base_revision),
        ("Donor", pair.donor, info.donor_model, info.donor_revision),
    )
    lines = []
    for role, source, name, commit in models:
        revision = f", revision {commit or 'unknown'}" if commit or source.hubs else ""
        lines.append(f"- {role}: {name}{revision}")
    with_ = "".join(f", {library} {version}" for library, version in info.versions.items())
    return "\n".join([*lines, f"- Made by GA Layer Search {info.tool_version}{with_}"])


def _licence(pair: Pair) -> str:
    """A paragraph for the model card; empty where nothing is known."""
    if not pair.license:
        return ""
    if not pair.license.startswith("llama"):
        return f"## Licence\n\n{pair.license}, as base and donor.\n\n"
    version = pair.license.removeprefix("llama")
    return (
        "## Licence\n\nBuilt with Llama. The donor's layers, and the base that was distilled from them, are under the "
        f"Llama {version} Community License, and so is this model.\n\n"
    )


def _scores(info: CheckpointInfo) -> str:
    lines = []
    if info.mmlu_score is not None:
        lines.append(f"MMLU accuracy: {info.mmlu_score:.4f}, as given when this checkpoint was made.")
    if info.score is not None:
        score = info.score
        lines.append(
            f"Accuracy on {score['questions']} questions of {'+'.join(score['tasks'])}{_how_asked(score)}, by which "
            f"the search chose: {score['accuracy']:.4f} +- {score['standard_error']:.4f} (one standard error)"
            f"{_measured_with(score)}."
        )
        if score.get("holdout_accuracy") is not None:
            error = score.get("holdout_standard_error")
            lines.append(
                f"On {score['holdout_questions']} questions that played no part in the choice: "
                f"{score['holdout_accuracy']:.4f}{'' if error is None else f' +- {error:.4f}'}."
            )
    return "\n".join(lines) or "No score was given; test_checkpoint.py --full_eval measures one."


def _how_asked(score: Mapping[str, Any]) -> str:
    """Shots and split, as far as they are known."""
    shots, split = score.get("num_fewshot"), score.get("split")
    known = ([] if shots is None else [f"{shots}-shot"]) + ([] if split is None else [f"split {split}"])
    return f" ({', '.join(known)})" if known else ""


def _measured_with(score: Mapping[str, Any]) -> str:
    """What the search ran with, not what made the checkpoint; empty where its result did not tell."""
    versions = score.get("versions") or {}
    named = (("GA Layer Search", "ga-layer-search"), ("lm-eval", "lm_eval"))
    known = [f"{title} {versions[name]}" for title, name in named if name in versions]
    return f", measured with {' and '.join(known)}" if known else ""


def _model_index(info: CheckpointInfo, name: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    if info.score is not None:
        score = info.score
        value, asked, split = score["accuracy"], list(score["tasks"]), score.get("split")
        how = f"{score['questions']} questions the search chose by{_how_asked(score)}"
        how += f", standard error {score['standard_error']:.4f}{_measured_with(score)}"
    elif info.mmlu_score is not None:
        value, asked, split, how = info.mmlu_score, ["mmlu"], None, "as given when the checkpoint was made"
    else:
        return []
    named = "+".join(asked or tasks)
    dataset = {"name": named, "type": named} | ({} if split is None else {"split": split})
    result = {
        "task": {"type": "multiple-choice"},
        "dataset": dataset,
        "metrics": [{"type": "accuracy", "name": f"accuracy ({how})", "value": value}],
    }  # a source would need an address
    return [{"name": name, "results": [result]}]
