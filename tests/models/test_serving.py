"""What those who serve or fine-tune a model rely on: compilation, placement, precision, files, training, memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoTokenizer, Cache, CompileConfig, StaticCache

from models.hybrid import load_hybrid
from models.loading import load_base
from models.mixer import LlambaMixer
from models.modeling_llamba import LlambaForCausalLM, new_cache
from models.pairs import get_pair
from models.tiny_pair import curriculum

MIXES = {"none": (), "first": (0,), "last": (3,), "some": (1, 2), "all": (0, 1, 2, 3)}
SHALLOW = {"none": (), "first": (0,), "last": (1,)}
"""Of two layers, for compilation, which takes long."""
GREEDY = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
TINY = get_pair("tiny")
BASE, DONOR = (str(source.folder) for source in (TINY.base, TINY.donor))

every_mix = pytest.mark.parametrize("layers", MIXES.values(), ids=MIXES)
every_shallow_mix = pytest.mark.parametrize("layers", SHALLOW.values(), ids=SHALLOW)


def tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, 61, (batch, length))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error."""
    return float((found.float() - expected).norm() / expected.norm())


# Compilation: the eager backend compiles nothing but needs the same graphs.


@pytest.fixture
def graphs() -> Iterator[Any]:
    """Says how many graphs there are by now."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@every_shallow_mix
@torch.no_grad()
def test_the_forward_is_one_graph(random_model, graphs, layers):
    model, ids = random_model(layers, n_layer=2), tokens()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    outputs = compiled(ids)
    torch.testing.assert_close(outputs.logits, model(ids).logits)
    assert outputs.past_key_values is not None
    compiled(tokens())
    assert graphs() == 1


@every_shallow_mix
@torch.no_grad()
def test_static_decoding_is_one_graph(random_model, graphs, layers):
    """For all tokens, all caches and all texts of one batch size."""
    model = random_model(layers, n_layer=2)
    step = torch.compile(model, backend="eager", fullgraph=True)
    for ids in tokens(3).split(1):
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :4], past_key_values=cache)
        logits = [step(ids[:, t : t + 1], past_key_values=cache).logits for t in range(4, 9)]
        torch.testing.assert_close(torch.cat(logits, 1), model(ids).logits[:, 4:], rtol=1e-3, atol=1e-4)
    assert graphs() == 1


@every_shallow_mix
def test_generate_compiles_its_step_once(random_model, graphs, layers):
    model = random_model(layers, n_layer=2)
    how = CompileConfig(backend="eager", fullgraph=True, mode=None)
    how._compile_all_devices = True  # on a CPU `generate` compiles only when told so
    for text in range(3):
        ids, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
        mask[0, :text] = 0  # the first is not padded
        options = GREEDY | {"attention_mask": mask}
        compiled = model.generate(ids, cache_implementation="static", compile_config=how, **options)
        assert torch.equal(compiled, model.generate(ids, use_cache=False, **options))
    assert graphs() == 1


def test_a_compiled_loss_has_the_same_gradients(random_model, graphs):
    model, ids = random_model((1,), n_layer=2).train(), tokens()
    expected = gradients(model, input_ids=ids, labels=ids)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    model.zero_grad()
    compiled(ids, labels=ids, use_cache=False).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=1e-3, atol=1e-5)
    assert graphs() == 1


# Placement by accelerate.


@every_mix
@pytest.mark.parametrize("placed", ["auto", {"": "cpu"}])
def test_a_folder_placed_on_a_device(tmp_path, random_model, layers, placed):
    model, ids = random_model(layers), tokens()
    model.save_pretrained(tmp_path)
    options = {"max_memory": {"cpu": "1GiB"}} if placed == "auto" else {}  # not onto a GPU, which rounds otherwise
    again = LlambaForCausalLM.from_pretrained(tmp_path, device_map=placed, **options)
    assert torch.equal(again.generate(ids, **GREEDY), model.generate(ids, **GREEDY))


@pytest.mark.parametrize(("layers", "tied"), [((), False), ((1, 2), False), ((0,), True), ((0, 1, 2, 3), True)])
def test_layers_left_on_disk(tmp_path, random_model, layers, tied):
    """Their weights are read when a module is called, so every module that has weights must be called."""
    model, ids = random_model(layers, tie_embeddings=tied), tokens()
    model.save_pretrained(tmp_path / "model")
    placed = {"backbone.embedding": "cpu", "backbone.final_layernorm": "disk", "lm_head": "cpu" if tied else "disk"}
    placed |= {f"backbone.layers.{i}": "cpu" if i == 2 else "disk" for i in range(4)}
    if layers:
        placed["backbone.rotary_emb"] = "cpu"
    again = LlambaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=placed, offload_folder=str(tmp_path / "offloaded")
    )
    assert all(p.is_meta for i in (0, 1, 3) for p in again.backbone.layers[i].parameters())
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert torch.equal(again.generate(ids, **GREEDY, **options), model.generate(ids, **GREEDY))


# Precision.


@pytest.mark.parametrize("layers", [(), (1, 2)])
@pytest.mark.parametrize("scale", [1, 1e2, 3e4])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
@torch.no_grad()
def test_half_precision_with_decays_of_every_size(random_model, layers, dtype, allowed, scale):
    """At a scale of 3e4 some are infinite in float16."""
    model, ids = random_model(layers), tokens(2, 40)
    for module in model.modules():
        if isinstance(module, LlambaMixer):
            module.in_proj.weight[-module.heads :] *= scale
    expected = model(ids).logits
    half = copy.deepcopy(model).to(dtype)
    logits = half(ids).logits
    assert logits.dtype == dtype
    assert error(logits, expected) < allowed
    cache = new_cache(half.config)
    parts = [half(part, past_key_values=cache).logits for part in ids.split([37, 1, 1, 1], 1)]
    assert error(torch.cat(parts, 1), expected) < allowed
    assert half.generate(ids, cache_implementation="static", **GREEDY).shape == (2, 47)


@torch.no_grad()
@pytest.mark.parametrize("cast", [LlambaForCausalLM.half, lambda model: model.to("cpu", torch.float16)])
def test_casting_leaves_the_rotary_tables_exact(random_model, cast):
    model, ids = random_model((0, 2)), tokens(1, 2000)
    expected, table = model(ids).logits[:, -500:], model.backbone.rotary_emb.inv_freq.clone()
    half = cast(model)
    assert half.lm_head.weight.dtype == torch.float16
    assert torch.equal(half.backbone.rotary_emb.inv_freq, table)
    assert error(half(ids).logits[:, -500:], expected) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_the_tiny_pairs_questions_alike(dtype):
    model, ids = load_hybrid(BASE, (0, 2, 4), DONOR), torch.from_numpy(curriculum.batch(1, 0)[0][:16]).long()
    logits = model(ids).logits
    half = model.to(dtype)(ids).logits
    assert error(half, logits) < 0.02
    asked = ids == AutoTokenizer.from_pretrained(BASE).convert_tokens_to_ids("Answer:")
    assert asked.sum() == 16
    assert (half[asked].argmax(-1) == logits[asked].argmax(-1)).float().mean() > 0.9


# Files.

SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"tie_embeddings": True},
    "one query head": {"ssm": {"n_qk_heads": 1}},
    "as many query heads": {"ssm": {"n_qk_heads": 4, "activation": "identity"}},
    "wider inside": {"ssm": {"expand": 2, "d_conv": 2}},
    "biases": {"ssm": {"bias": True, "conv_bias": False}, "lm_head_bias": True},
    "no padding of the vocabulary": {"pad_vocab_size_multiple": 1},
    "much padding of the vocabulary": {"pad_vocab_size_multiple": 64, "tie_embeddings": True},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_every_bit_comes_back(tmp_path, random_model, shape, dtype):
    model, ids = random_model((1,), **shape).to(dtype), tokens()
    model.generation_config.eos_token_id = 7
    model.save_pretrained(tmp_path)
    again = LlambaForCausalLM.from_pretrained(tmp_path)
    expected, found = model.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == dtype for name in expected)
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    assert again.generation_config.eos_token_id == 7
    for loaded in (again, load_base(tmp_path, dtype=dtype)):
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert loaded(ids).logits.shape == (2, 9, 61)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("wanted", "multiple", "rows"), [(62, None, 64), (70, None, 72), (40, None, 40), (70, 16, 80), (None, 48, 96)]
)
@torch.no_grad()
def test_a_resized_vocabulary_comes_back(tmp_path, random_model, tied, wanted, multiple, rows):
    """Users add tokens before they fine-tune; the folder must have as many rows as its configuration says."""
    model, ids = random_model((1,), tie_embeddings=tied), tokens() % 40
    before, size = model(ids).logits, wanted or 61
    model.resize_token_embeddings(wanted, multiple)
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == rows
    logits = model(ids).logits
    assert logits.shape == (2, 9, size)
    torch.testing.assert_close(logits[..., :40], before[..., :40])
    model.save_pretrained(tmp_path)
    assert torch.equal(LlambaForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)


# Training.


def gradients(model: LlambaForCausalLM, **inputs: Any) -> dict[str, torch.Tensor]:
    """Of the loss, by parameter; and the loss itself under that name."""
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()} | {"loss": loss.detach()}


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")  # the newer name is not in every transformers
@every_mix
def test_recomputing_activations_changes_no_gradient(random_model, layers):
    model, ids = random_model(layers).train(), tokens()
    expected = gradients(model, input_ids=ids, labels=ids)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in expected.values())
    calls = []
    for block in model.backbone.layers:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(model, input_ids=ids, labels=ids), expected)
    assert len(calls) == 8  # each layer once more on the way back
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(gradients(model, input_ids=ids, labels=ids), expected)
    assert len(calls) == 12


@every_mix
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter_in_training(random_model, layers, side):
    """A padded batch has the loss and the gradients of its texts, each weighted by its predicted tokens."""
    model, lengths = random_model(layers).train(), (9, 4, 7)
    texts = [tokens(1, length) for length in lengths]
    expected: dict[str, torch.Tensor] = {}
    for text in texts:
        for name, gradient in gradients(model, input_ids=text, labels=text).items():
            share = (text.shape[1] - 1) / (sum(lengths) - 3)
            expected[name] = expected.get(name, 0) + share * gradient

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        """[3, 9]."""
        sides = [(9 - row.shape[1], 0) if side == "left" else (0, 9 - row.shape[1]) for row in rows]
        return torch.cat([torch.nn.functional.pad(row, pad, value=value) for row, pad in zip(rows, sides, strict=True)])

    found = gradients(
        model,
        input_ids=padded(texts, 17),
        attention_mask=padded([torch.ones_like(text) for text in texts], 0),
        labels=padded([torch.cat([text[:, :1] * 0 - 100, text[:, 1:]], 1) for text in texts], -100),
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_hybrid_of_the_tiny_pair_learns():
    model = load_hybrid(BASE, (2,), DONOR).train().requires_grad_(True)
    ids = torch.from_numpy(curriculum.batch(1, 0)[0][:8]).long()
    pad = AutoTokenizer.from_pretrained(BASE).pad_token_id
    inputs = {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": ids.masked_fill(ids == pad, -100)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        found = gradients(model, **inputs)
        assert all(gradient.isfinite().all() for gradient in found.values())
        losses.append(found["loss"].item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# Memory.


def kept(cache: Cache) -> int:
    """Bytes of all storage that a cache holds on to, once each."""
    found: dict[int, int] = {}

    def visit(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict | list | tuple):
            for part in thing.values() if isinstance(thing, dict) else thing:
                visit(part)
        elif hasattr(thing, "__dict__"):
            visit(vars(thing))

    visit(vars(cache))
    return sum(found.values())


@every_mix
@torch.no_grad()
def test_only_donor_layers_keep_more_of_a_longer_text(random_model, layers):
    """Their keys and values: 2 key/value heads of width 8, in float32."""
    model, sizes = random_model(layers), {}
    for length in (6, 17, 80):
        cache = new_cache(model.config)
        model(tokens(3, length), past_key_values=cache)
        sizes[length] = kept(cache)
        for _ in range(5):
            model(tokens(3, 1), past_key_values=cache)
        sizes[length + 5] = kept(cache)
    per_token = 3 * len(layers) * 2 * 2 * 8 * 4
    for length, size in sizes.items():
        assert size - sizes[6] == (length - 6) * per_token
    assert sizes[6] > 6 * per_token or layers == MIXES["all"]  # the states of the others


@torch.no_grad()
def test_the_tiny_pairs_base_keeps_as_much_of_any_text():
    model, sizes = load_base(BASE, dtype=torch.bfloat16), set()
    for length in (4, 300):
        for kind in (None, "static"):
            options = {"cache_implementation": kind, "max_new_tokens": 4, "min_new_tokens": 4}
            ids = torch.randint(3, 400, (1, length))
            sizes.add(kept(model.generate(ids, return_dict_in_generate=True, **options).past_key_values))
    assert len(sizes) == 1
