"""The bundled pair is what its code says, what the landscape says, and small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from models.hybrid import HybridPair
from models.pairs import get_pair
from models.tiny_pair import curriculum, distill_base, questions, train_donor
from models.tiny_pair.vocabulary import PAD, UNK, ids, knowledge
from models.tiny_pair.write import GROUPS, write_questions

PAIR = get_pair("tiny")
BASE, DONOR = (Path(source.folder or "") for source in (PAIR.base, PAIR.donor))
FOLDER = BASE.parent


def documents(split: str, subject: str) -> list[dict]:
    lines = (FOLDER / "tasks" / f"{GROUPS[split]}_{subject}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def landscape() -> dict[str, float]:
    found = json.loads((FOLDER / "landscape.json").read_text())
    return {layers: correct / found["questions"] for layers, correct in found["sets"].items()}


def test_question_files_are_what_the_code_makes(tmp_path):
    write_questions(tmp_path)
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (FOLDER / "tasks" / made.name).read_bytes(), made.name


@pytest.mark.parametrize("subject", questions.SUBJECTS)
def test_every_question_has_one_right_answer(subject):
    asked = documents("search", subject)
    assert len(asked) >= 1000
    for document in asked:
        words = document["question"].replace(".", "").replace("?", "").replace(",", "").split()
        choices = document["choices"]
        assert len(set(choices)) == 4
        if subject == "knowledge":
            key = ids()[words[-1]] - ids()[questions.KEYS[0]]
            expected = questions.VALUES[knowledge()[key]]
        else:
            facts = {words[i]: words[i + 2] for i in range(0, 3 * questions.FACTS, 3)}  # KEY is VALUE
            if subject == "position":
                ends = list(facts.values())
                expected = ends[0] if words[-1] == "first" else ends[-1]
            else:
                expected = facts[words[-1]]
                if subject == "two_hop":
                    expected = facts[expected]
        assert choices[document["answer"]] == expected


def test_heldout_questions_are_others():
    for subject in questions.SUBJECTS:
        search = {json.dumps([d["question"], d["choices"]]) for d in documents("search", subject)}
        heldout = {json.dumps([d["question"], d["choices"]]) for d in documents("heldout", subject)}
        assert len(heldout) >= 500
        assert not search & heldout


def test_tokenizer_reads_back_the_training_tokens():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for subject in questions.SUBJECTS:
        drawn = questions.sample(subject, 50, np.random.default_rng(3))
        rows, ask_at = questions.tokens_with_answer(drawn)
        documents_ = [questions.detokenise(row) for row in drawn.prompt_NT]
        for text, choices, row, at in zip(documents_, drawn.choices_N4, rows, ask_at, strict=True):
            options = "\n".join(f"{'ABCD'[i]}. {tokenizer.decode([c])}" for i, c in enumerate(choices))
            assert tokenizer(f"{text}\n{options}\nAnswer:")["input_ids"] == list(row[: at + 1])
            assert row[at] == ids()["Answer:"]


def test_tokenizer_spells_text_it_does_not_know():
    tokenizer = AutoTokenizer.from_pretrained(DONOR)
    encoded = tokenizer("Photosynthesis (in 1999) costs $3; plums?")["input_ids"]
    assert ids()[UNK] not in encoded
    assert tokenizer.decode(encoded).replace(" ", "") == "Photosynthesis(in1999)costs$3;plums?"


def test_training_batches_depend_on_seed_and_step_alone():
    tokens, weights = curriculum.batch(0, 5)
    again, _ = curriculum.batch(0, 5)
    other, _ = curriculum.batch(0, 6)
    assert tokens.shape == (curriculum.BATCH, questions.MAX_TOKENS)
    assert (tokens == again).all()
    assert (tokens != other).any()
    assert (weights[tokens == ids()[PAD]] == 0).all()
    assert ((weights == 1).sum(axis=1) >= 2).all()  # at least the value and the end are trained in full


def test_weights_are_small_and_named_as_on_the_hub():
    from safetensors import safe_open

    size = sum(f.stat().st_size for f in FOLDER.glob("*/model.safetensors"))
    assert size <= 16e6
    with safe_open(BASE / "model.safetensors", "pt") as base:
        names = set(base.keys())
    assert {"backbone.embedding.weight", "backbone.layers.0.mixer.in_proj.weight", "lm_head.weight"} <= names


def test_landscape_has_every_set_and_the_promised_shape(landscape):
    assert len(landscape) == 794
    best = {n: max(v for k, v in landscape.items() if k != "none" and k.count("+") == n - 1) for n in range(1, 5)}
    assert landscape["none"] <= 0.45
    assert best[4] >= 0.92
    assert best[1] < best[2] < best[3] < best[4]


def test_layers_interact(landscape):
    """A layer that is worthless alone (within 0.03 of the base, or below it) and decisive with others."""
    alone = {i: landscape[str(i)] - landscape["none"] for i in (1, 4, 5)}
    assert max(alone.values()) <= 0.03
    assert landscape["0+1"] - landscape["0"] >= 0.15
    assert landscape["0+2+4"] - landscape["0+2"] >= 0.08
    assert landscape["0+2+4+5"] - landscape["0+2+4"] >= 0.07


def test_donor_knows_and_base_guesses():
    """All layers of the donor answer nearly all of the held-out questions, the base about a quarter."""
    models = HybridPair.load(BASE, DONOR)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    right: dict[str, list[float]] = {"base": [], "donor": []}
    for subject in questions.SUBJECTS:
        asked = documents("heldout", subject)[:256]
        texts = [
            d["question"] + "".join(f"\n{x}. {c}" for x, c in zip("ABCD", d["choices"], strict=True)) + "\nAnswer:"
            for d in asked
        ]
        rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
        tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        last_B = torch.tensor([len(row) - 1 for row in rows])
        gold_B = torch.tensor([d["answer"] for d in asked])
        for role, run in (("base", models.base), ("donor", models.donor)):
            with torch.inference_mode():
                h_BTD = models.embed(tokens_BT)
                for i in range(models.depth):
                    h_BTD = run(i, h_BTD)
                logits_BV = models.logits(h_BTD[torch.arange(len(rows)), last_B])
            right[role].append((logits_BV[:, letters].argmax(1) == gold_B).float().mean().item())
    assert min(right["donor"]) >= 0.97
    assert np.mean(right["base"]) <= 0.45


def test_training_code_runs_and_learns(monkeypatch):
    """Both stages in miniature, on the CPU; the batches come from this process to spare their start."""
    monkeypatch.setattr(curriculum, "GROUP", 4)

    def stream(seed, start, stop, workers=0):
        yield from (curriculum.batch(seed, step) for step in range(start, stop))

    monkeypatch.setattr(train_donor, "batches", stream)
    monkeypatch.setattr(distill_base, "batches", stream)
    shape = {"layers": 2, "width": 32, "heads": 2, "mlp_width": 64}
    training = train_donor.DonorTraining(
        **shape,
        max_stable_steps=30,
        decay_steps=10,
        warmup_steps=5,
        check_every=10,
        device="cpu",
        compile=False,
    )
    donor, record = train_donor.train(training)
    losses = [entry["loss"] for entry in record["history"]]
    assert losses[-1] < losses[0]
    settings = distill_base.Distillation(heads=2, steps=30, warmup_steps=5, check_every=5, device="cpu", compile=False)
    base, record = distill_base.distil(donor, settings)
    assert sum(record["history"][-1]["error"]) < sum(record["history"][0]["error"])
    kept, given = base.backbone.layers[0].mlp.up_proj.weight, donor.model.layers[0].mlp.up_proj.weight
    assert torch.equal(kept, given)
