"""The texts in a checkpoint folder: README.md, a model card for hubs; README.txt, how to use the files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from model_preparation.checkpoint import CheckpointInfo

LICENSES = {"tiny": "mit", "llamba-8b": "llama3.1"}
"""By pair; weights made from Llama's stay under its Community License. Of other pairs nothing is known."""

_README_TXT = """\
{name}
{underline}
{summary}

{scores}

What is in this folder
  config.json, model*.safetensors, generation_config.json, tokenizer*, *.py
                         a Hugging Face model; the .py files are its modelling code
  model.pt               the whole model in PyTorch's format
  model_state_dict.pt    its tensors by name
  tokenizer/             the tokenizer once more, by itself
  checkpoint_info.json   what this is: layers, scores, sources
  README.md              a model card

How to load it, from the folder that holds {name}

1. In an environment of GA Layer Search (its set-up, or `pip install -e .` in a clone of it):

     import torch
     model = torch.load({model_pt!r})

     from transformers import AutoTokenizer
     tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})

   If torch answers "Weights only load failed ... model_preparation.saved_model.rebuild", GA Layer Search can
   be imported there but is not installed; then write one of these:

     from model_preparation import load_model
     model, tokenizer = load_model({name!r})

     model = torch.load({model_pt!r}, weights_only=False)

2. The same, from the state dict; the base takes on the layers that the file names:

     from model_preparation.modelscope_utils import get_model_modelscope
     model, tokenizer, _, _ = get_model_modelscope('unaligned_llamba', pair={pair!r})
     model.load_state_dict(torch.load({state!r}))

3. Anywhere, with nothing but torch and transformers 5.17 or later; this runs the .py files of this folder:

     from transformers import AutoModelForCausalLM, AutoTokenizer
     model = AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True)
     tokenizer = AutoTokenizer.from_pretrained({tokenizer!r})

Then

     inputs = tokenizer("Hello world", return_tensors="pt").to(model.device)
     print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))
"""


def read_me(info: CheckpointInfo, name: str) -> str:
    """README.txt of the checkpoint folder `name`."""
    return _README_TXT.format(
        name=name,
        underline="=" * len(name),
        summary=_summary(info),
        scores=_scores(info),
        pair=info.pair,
        model_pt=f"{name}/model.pt",
        state=f"{name}/model_state_dict.pt",
        tokenizer=f"{name}/tokenizer",
    )


def model_card(info: CheckpointInfo, name: str, tasks: Sequence[str]) -> str:
    """README.md of the checkpoint folder `name`, with the front matter hubs read.

    Args:
        info: of the checkpoint.
        name: of the folder.
        tasks: of the pair, which its score is about unless the score names its own.
    """
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llamba", "mamba2", "llama", "hybrid", "merge", "custom_code"],
        "base_model": [info.base_model, info.donor_model],
        "base_model_relation": "merge",
    }
    if license_ := LICENSES.get(info.pair):
        front["license"] = license_
    if results := _model_index(info, name, tasks):
        front["model-index"] = results
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{header}---\n\n# {name}\n\n{_summary(info)}\n\n{_scores(info)}\n\n"
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}, trust_remote_code=True)\n```\n\n"
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


def _scores(info: CheckpointInfo) -> str:
    lines = []
    if info.mmlu_score is not None:
        lines.append(f"MMLU accuracy: {info.mmlu_score:.4f}, as given when this checkpoint was made.")
    if info.score is not None:
        score = info.score
        lines.append(
            f"Accuracy on the {score['questions']} questions of {'+'.join(score['tasks'])} that the search "
            f"chose by: {score['accuracy']:.4f} +- {score['standard_error']:.4f}."
        )
        if score.get("holdout_accuracy") is not None:
            lines.append(
                f"On {score['holdout_questions']} questions that played no part in the choice: "
                f"{score['holdout_accuracy']:.4f}."
            )
    return "\n".join(lines) or "No score was given; test_checkpoint.py --full_eval measures one."


def _model_index(info: CheckpointInfo, name: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    if info.score is not None:
        value, asked = info.score["accuracy"], list(info.score["tasks"])
        shots = f"{info.score.get('num_fewshot') or 0}-shot"
        how = f"{info.score['questions']} questions the search chose by, {shots}"
    elif info.mmlu_score is not None:
        value, asked, how = info.mmlu_score, ["mmlu"], "as given when the checkpoint was made"
    else:
        return []
    source = f"GA Layer Search {info.tool_version}, lm-eval {metadata.version('lm_eval')}"
    result = {
        "task": {"type": "multiple-choice"},
        "dataset": {"name": "+".join(asked or tasks), "type": "+".join(asked or tasks), "split": "test"},
        "metrics": [{"type": "accuracy", "name": f"accuracy ({how})", "value": value}],
        "source": {"name": source},
    }
    return [{"name": name, "results": [result]}]
