"""The model card: what hubs read of it is what they accept, and says no more than is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from model_preparation.checkpoints.info import CheckpointInfo
from model_preparation.checkpoints.texts import model_card
from model_preparation.create_replaced_model_checkpoint import read_result
from models.pairs import Pair, get_pair, make_pair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SEARCHED = {"accuracy": 0.9, "standard_error": 0.01, "questions": 100, "tasks": ["mmlu"], "num_fewshot": 0}
SEARCHED |= {"split": "test", "versions": {"ga-layer-search": "0.0.7", "lm_eval": "0.4.1", "torch": "2.0"}}


def info_of(pair: Pair, **changed: Any) -> CheckpointInfo:
    """Of a checkpoint of the pair, made with other versions than any search here."""
    info = CheckpointInfo(
        replaced_layers=[1],
        mmlu_score=None,
        score=None,
        creation_time="",
        description="",
        pair=pair.name,
        base_model=pair.base.name,
        base_fingerprint="",
        donor_model=pair.donor.name,
        donor_fingerprint="",
        num_layers=4,
        num_parameters=1000,
        dtype="bfloat16",
        tool_version="9.9.9",
        versions={"torch": "8.8.8", "lm_eval": "7.7.7"},
    )
    return replace(info, **changed)


def front_of(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---")[1]))


@pytest.mark.parametrize(
    ("base", "donor", "ids"),
    [
        (
            "llamba-8b/base",
            "llamba-8b/donor",
            ["goombalab/Llamba-8B-untied-unaligned", "meta-llama/Llama-3.1-8B-Instruct"],
        ),
        ("hf:org/base@v1", f"ms:org/donor@{COMMIT}", ["org/base", "org/donor"]),
        ("FOLDER", "org/donor", ["org/donor"]),
        ("FOLDER", "tiny/donor", None),
    ],
)
def test_base_models_are_ids_and_no_path_is_in_the_front(
    base: str, donor: str, ids: list[str] | None, tmp_path: Path
) -> None:
    pair = make_pair(base.replace("FOLDER", str(tmp_path)), donor)
    card = model_card(info_of(pair, mmlu_score=0.5, score=SEARCHED), "made", pair)
    front = front_of(card)
    assert front.get("base_model") == ids
    assert ("base_model_relation" in front) == (ids is not None)
    for one in ids or ():
        validate_repo_id(one)
    assert str(tmp_path) not in card.split("---")[1]
    assert ModelCard(card).data.base_model == ids


def test_a_commit_that_is_not_known_is_said() -> None:
    pair = get_pair("llamba-8b")
    card = model_card(info_of(pair, base_revision=COMMIT), "made", pair)
    assert f"- Base: {pair.base.name}, revision {COMMIT}\n" in card
    assert f"- Donor: {pair.donor.name}, revision unknown\n" in card
    tiny = get_pair("tiny")
    assert "revision" not in model_card(info_of(tiny), "made", tiny)


def test_a_published_score_is_nobody_elses() -> None:
    pair = get_pair("tiny")
    card = model_card(info_of(pair, mmlu_score=0.57), "made", pair)
    (result,) = front_of(card)["model-index"][0]["results"]
    assert result["metrics"] == [
        {"type": "accuracy", "name": "accuracy (as given when the checkpoint was made)", "value": 0.57}
    ]
    assert "source" not in result
    (read,) = ModelCard(card).data.eval_results
    assert (read.metric_value, read.dataset_type, read.source_name) == (0.57, "mmlu", None)


def test_a_score_of_a_search_is_told_with_what_the_search_ran_with() -> None:
    pair = get_pair("tiny")
    card = model_card(info_of(pair, score=SEARCHED), "made", pair)
    (read,) = ModelCard(card).data.eval_results
    assert read.metric_name is not None
    assert read.metric_name.endswith("measured with GA Layer Search 0.0.7 and lm-eval 0.4.1)")
    assert "(one standard error), measured with GA Layer Search 0.0.7 and lm-eval 0.4.1." in card
    assert "9.9.9" not in card.split("---")[1]
    older = {name: value for name, value in SEARCHED.items() if name != "versions"}
    assert "measured with" not in model_card(info_of(pair, score=older), "made", pair)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"versions": {"lm_eval": "0.4.1", "commit": None}}, {"lm_eval": "0.4.1"}),
        ({}, {}),
        ({"versions": None}, {}),
    ],
)
def test_a_result_tells_what_it_was_made_with(document: dict[str, Any], expected: object, tmp_path: Path) -> None:
    found = {"rank": 1, "layers": [1], "accuracy": 0.9, "standard_error": 0.01, "questions": 100}
    path = tmp_path / "search_result_1.json"
    path.write_text(json.dumps(document | {"final_results": [found]}))
    assert read_result(path, 1)["score"]["versions"] == expected
