"""The bundled pair is what its code says, what the landscape says, and small."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from models.hybrid import HybridPair
from models.pairs import get_pair
from models.tiny_pair import __main__ as command
from models.tiny_pair import curriculum, distill_base, questions, train_donor
from models.tiny_pair.vocabulary import PAD, UNK, ids, knowledge
from models.tiny_pair.widen import widen
from models.tiny_pair.write import GROUPS, write_questions

PAIR = get_pair("tiny")
BASE, DONOR = (Path(source.folder or "") for source in (PAIR.base, PAIR.donor))
FOLDER = BASE.parent
BUNDLED_BATCH = "620d1383279e27d8"


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
        asked = documents("heldout", subject)[:64]
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


def test_batches_of_the_bundled_pair_stay_as_they_are():
    tokens, weights = curriculum.batch(0, 5)
    assert hashlib.sha256(tokens.tobytes() + weights.tobytes()).hexdigest().startswith(BUNDLED_BATCH)
    assert train_donor.DonorTraining().mix == distill_base.Distillation().mix == curriculum.MIX


def test_a_mix_says_what_is_in_a_batch():
    tokens, _ = curriculum.batch(0, 5, {"recall": 1, "position": 1})
    assert tokens.shape == (2 * curriculum.GROUP, questions.MAX_TOKENS)
    assert (tokens[: curriculum.GROUP] == ids()["Here"]).any(axis=1).all()
    assert (tokens[curriculum.GROUP :] == ids()["Which"]).any(axis=1).all()


@pytest.mark.parametrize("size", ["tiny", "larger"])
def test_training_without_bounds_is_the_one_of_that_size(size):
    for settings in (train_donor.DONORS[size], distill_base.DISTILLATIONS[size]):
        assert settings.within(None, None) == settings


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_training_keeps_within_its_bounds(steps):
    donor = train_donor.LARGER.within(steps, 9.0)
    assert donor.max_stable_steps + donor.decay_steps == steps
    assert donor.decay_steps >= 1
    assert max(donor.warmup_steps, donor.check_every) <= steps
    base = distill_base.LARGER.within(steps, 9.0)
    assert base.steps == steps
    assert max(base.warmup_steps, base.check_every) <= steps
    assert donor.budget_seconds == base.budget_seconds == 9.0


def test_learning_rate_runs_out_with_the_time():
    assert train_donor.ramp(1e9, None) == 1
    left = [train_donor.ramp(seconds, 100.0) for seconds in (0, 75, 87.5, 100, 101)]
    assert left[:4] == [1, 1, 0.5, 0]
    assert left[4] < 0


def test_wider_donor_starts_as_the_bundled_one():
    small = LlamaForCausalLM.from_pretrained(DONOR, dtype=torch.float32)
    shape = train_donor.DonorTraining(width=384, heads=6, mlp_width=768)
    with pytest.raises(ValueError, match="num_attention_heads 6 is no multiple of 4"):
        widen(small, train_donor.donor_config(shape), noise=0.0, seed=0)
    config = train_donor.donor_config(train_donor.DonorTraining(width=256, heads=8, mlp_width=768))
    doubled_heads = widen(small, config, noise=0.0, seed=0)
    config = train_donor.donor_config(train_donor.DonorTraining(width=256, heads=4, mlp_width=384))
    wider_heads = widen(small, config, noise=0.0, seed=0)
    noisy = widen(small, config, noise=0.5, seed=0)
    tokens_BT = train_donor.check_batch(2, "cpu")[0]
    with torch.inference_mode():
        expected, *made = (m(input_ids=tokens_BT).logits for m in (small, doubled_heads, wider_heads, noisy))
    for logits in made[:2]:
        torch.testing.assert_close(logits, expected, atol=2e-3, rtol=0)
    assert (made[2] - expected).abs().max() > 0.1


def test_matrices_of_the_larger_pair_suit_8_bit_products():
    shape = replace(train_donor.LARGER, layers=1)
    donor = LlamaForCausalLM(train_donor.donor_config(shape))
    base = distill_base.base_from_donor(donor, distill_base.LARGER)
    for model in (donor.model, base.backbone):
        matrices = [weight for weight in model.layers.parameters() if weight.dim() == 2]
        assert len(matrices) >= 5
        assert not any(length % 16 for weight in matrices for length in weight.shape)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["all", "--size", "larger"], "--output-dir"),
        (["base", "--size", "larger", "--output-dir", str(FOLDER)], "must not replace the bundled one"),
        (["donor", "--steps", "0"], "--steps 0"),
        (["donor", "--minutes", "-1"], "--minutes -1.0"),
    ],
)
def test_training_refuses_what_cannot_be(arguments, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


@pytest.fixture
def small_batches(monkeypatch):
    """Batches and checks of a few questions, drawn in this process to spare the start of others."""
    monkeypatch.setattr(curriculum, "GROUP", 4)
    check = train_donor.check_batch(16, "cpu")

    def stream(seed, start, stop, workers=0, mix=curriculum.MIX):
        yield from (curriculum.batch(seed, step, mix) for step in range(start, stop))

    for module in (train_donor, distill_base):
        monkeypatch.setattr(module, "batches", stream)
        monkeypatch.setattr(module, "check_batch", lambda *_: check)


MINIATURE = train_donor.DonorTraining(
    layers=2,
    width=32,
    heads=2,
    mlp_width=64,
    max_stable_steps=30,
    decay_steps=10,
    warmup_steps=5,
    check_every=10,
    device="cpu",
    compile=False,
)


def test_training_code_runs_and_learns(small_batches):
    """Both stages in miniature, on the CPU."""
    donor, record = train_donor.train(MINIATURE)
    losses = [entry["loss"] for entry in record["history"]]
    assert losses[-1] < losses[0]
    assert record["history"][-1]["step"] == 40
    settings = distill_base.Distillation(heads=2, steps=30, warmup_steps=5, check_every=5, device="cpu", compile=False)
    base, record = distill_base.distil(donor, settings)
    assert sum(record["history"][-1]["error"]) < sum(record["history"][0]["error"])
    kept, given = base.backbone.layers[0].mlp.up_proj.weight, donor.model.layers[0].mlp.up_proj.weight
    assert torch.equal(kept, given)
    _, record = distill_base.distil(donor, replace(settings, stop_at=0.0))
    assert [entry["step"] for entry in record["history"]] == [5]


def test_training_out_of_time_ends_with_a_model(small_batches):
    donor, record = train_donor.train(replace(MINIATURE, budget_seconds=1e-9))
    assert record["history"] == []
    assert set(record["accuracy"]) == set(questions.SUBJECTS)
    settings = distill_base.Distillation(heads=2, budget_seconds=1e-9, device="cpu", compile=False)
    base, record = distill_base.distil(donor, settings)
    assert record["history"] == []
    assert base.config.n_layer == MINIATURE.layers
