"""Cached generation against recomputing everything for every token."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from models.modeling_llamba import LlambaForCausalLM, new_cache

MIXES = {"none": (), "first": (0,), "last": (3,), "some": (1, 2), "all": (0, 1, 2, 3)}
NEW = 7
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=MIXES.values(), ids=MIXES)
def model(request, random_model) -> LlambaForCausalLM:
    return random_model(request.param)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 61, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :1] = 0
    return ids.masked_fill(mask == 0, 0), mask


@torch.no_grad()
def recomputed(model: LlambaForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    for _ in range(NEW):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(ids, mask, positions, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_left_padded_batch(model, cache):
    ids, mask = prompts()
    expected = recomputed(model, ids, mask)
    generated = model.generate(ids, attention_mask=mask, cache_implementation=cache, **GREEDY)
    assert torch.equal(generated, expected)
    assert len(set(expected[:, 9:].flatten().tolist())) > 3  # else a model that ignores its past would pass


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_batch_of_one_without_padding(model, cache):
    ids, mask = prompts()
    expected = recomputed(model, ids, mask)[:, -NEW:]
    for row, (text, real) in enumerate(zip(ids, mask == 1, strict=True)):
        generated = model.generate(text[real][None], cache_implementation=cache, **GREEDY)
        assert torch.equal(generated[0, -NEW:], expected[row])


def test_beams_reorder_every_kind_of_state(model):
    ids, mask = prompts()
    cached, plain = (
        model.generate(ids, attention_mask=mask, num_beams=3, use_cache=use_cache, **GREEDY)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_a_prompt_in_pieces(model):
    ids, mask = prompts()
    generated = model.generate(ids, attention_mask=mask, prefill_chunk_size=4, **GREEDY)
    assert torch.equal(generated, recomputed(model, ids, mask))


@torch.no_grad()
def test_a_text_continued_from_a_cache(model):
    ids = torch.randint(1, 61, (2, 9))
    cache = new_cache(model.config)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([2, 6, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=1e-3, atol=1e-4)
    assert cache.get_seq_length() == 9


def test_generation_continued_from_a_cache(model):
    ids = torch.randint(1, 61, (2, 9))
    expected = recomputed(model, ids, torch.ones_like(ids))
    cache = new_cache(model.config)
    with torch.no_grad():
        model(ids[:, :6], past_key_values=cache)
    assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), expected)


def test_a_cache_that_cannot_serve_is_refused(random_model):
    model = random_model()
    with pytest.raises(ValueError, match="new_cache"):
        model.generate(torch.ones(1, 3).long(), past_key_values=DynamicCache(config=model.config), **GREEDY)


def test_a_reset_cache_starts_anew(random_model):
    model, ids = random_model(), torch.randint(1, 61, (2, 9))
    cache = new_cache(model.config)
    with torch.no_grad():
        first = model(ids, past_key_values=cache).logits
        cache.reset()
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(model(ids, past_key_values=cache).logits, first)
