"""The chunked scan against its quadratic twin, and that against the recurrence written out."""

from __future__ import annotations

import pytest
import torch

from models.scan import chunked_scan, quadratic_scan, scan_step

HEADS, GROUPS, STATES, WIDTH = 4, 2, 3, 5


def inputs(tokens: int, *, dtype: torch.dtype = torch.float64, grad: bool = False) -> list[torch.Tensor]:
    x = torch.randn(2, tokens, HEADS, WIDTH, dtype=dtype)
    g = -torch.rand(2, tokens, HEADS, dtype=dtype)
    b = torch.randn(2, tokens, GROUPS, STATES, dtype=dtype)
    c = torch.randn(2, tokens, GROUPS, STATES, dtype=dtype)
    return [a.requires_grad_(grad) for a in (x, g, b, c)]


def written_out(x, g, b, c, state):
    b, c = (a.repeat_interleave(HEADS // GROUPS, dim=2) for a in (b, c))
    outputs = []
    for t in range(x.shape[1]):
        state = g[:, t].exp()[..., None, None] * state + b[:, t, :, :, None] * x[:, t, :, None, :]
        outputs.append((c[:, t, :, :, None] * state).sum(2))
    return torch.stack(outputs, 1), state


def initial_state(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, HEADS, STATES, WIDTH, dtype=dtype)


@pytest.mark.parametrize("with_state", [False, True])
def test_quadratic_form_is_the_recurrence(with_state):
    state = initial_state()
    y, last = quadratic_scan(*(a := inputs(9)), initial_state_BHNP=state if with_state else None)
    expected_y, expected_last = written_out(*a, state if with_state else torch.zeros_like(state))
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, 16, 128])
@pytest.mark.parametrize("tokens", [1, 3, 4, 16, 37])
def test_chunked_form_is_the_quadratic_form(tokens, chunk_size, with_state):
    a = inputs(tokens)
    state = initial_state() if with_state else None
    y, last = chunked_scan(*a, chunk_size=chunk_size, initial_state_BHNP=state)
    expected_y, expected_last = quadratic_scan(*a, initial_state_BHNP=state)
    torch.testing.assert_close(y, expected_y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-5, atol=1e-5)
    assert last.dtype == torch.float32


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_gradients_are_those_of_the_quadratic_form(chunk_size):
    a = inputs(11, grad=True)
    state = initial_state().requires_grad_()
    weights = torch.randn(2, 11, HEADS, WIDTH, dtype=torch.float64)

    def gradients(scan):
        y, last = scan()
        return torch.autograd.grad((y * weights).sum() + last.square().sum().double(), [*a, state])

    chunked = gradients(lambda: chunked_scan(*a, chunk_size=chunk_size, initial_state_BHNP=state))
    quadratic = gradients(lambda: quadratic_scan(*a, initial_state_BHNP=state))
    torch.testing.assert_close(chunked, quadratic, rtol=1e-4, atol=1e-4)


def test_a_scan_in_two_parts_is_the_scan_of_the_whole():
    a = inputs(20, dtype=torch.float32)
    first, state = chunked_scan(*(part[:, :7] for part in a), chunk_size=4)
    second, last = chunked_scan(*(part[:, 7:] for part in a), chunk_size=4, initial_state_BHNP=state)
    whole, expected = chunked_scan(*a, chunk_size=4)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_the_scan_of_one_token(dtype):
    a, state = inputs(1, dtype=dtype), initial_state(torch.float32)
    y, last = scan_step(*a, initial_state_BHNP=state)
    expected_y, expected_last = chunked_scan(*a, initial_state_BHNP=state)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(last, expected_last)


def test_steps_are_the_recurrence():
    a = inputs(9, dtype=torch.float32)
    state, outputs = initial_state(torch.float32), []
    expected_y, expected_last = written_out(*a, state)
    for t in range(9):
        y, state = scan_step(*(part[:, t : t + 1] for part in a), initial_state_BHNP=state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected_y)
    torch.testing.assert_close(state, expected_last)


def test_forgetting_everything_at_once_gives_no_nan():
    x, g, b, c = inputs(12, dtype=torch.float32, grad=True)
    y, last = chunked_scan(x, g - 1e4, b, c, chunk_size=4)
    (y.sum() + last.sum()).backward()
    alone = (c * b).sum(-1).repeat_interleave(HEADS // GROUPS, dim=2).unsqueeze(-1) * x
    torch.testing.assert_close(y, alone)
    assert all(a.grad.isfinite().all() for a in (x, b, c))


@pytest.mark.parametrize("scale", [1, 1e2, 1e4])
def test_decays_of_every_size_in_one_chunk(scale):
    x, g, b, c = inputs(100)
    g = -torch.nn.functional.softplus(scale * torch.randn_like(g))
    expected, state = written_out(x, g, b, c, torch.zeros(2, HEADS, STATES, WIDTH, dtype=torch.float64))
    y, last = chunked_scan(*(a.float() for a in (x, g, b, c)), chunk_size=128)
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(last.double(), state, rtol=1e-3, atol=1e-3)


def test_a_decay_past_all_numbers_forgets():
    x, g, b, c = inputs(12, dtype=torch.float32)
    g[:, 5] = float("-inf")
    y, last = chunked_scan(x, g, b, c, chunk_size=8)
    expected, state = chunked_scan(*(a[:, 5:] for a in (x, g, b, c)), chunk_size=8)
    torch.testing.assert_close(y[:, 5:], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-4)


def test_autocast_leaves_the_state_in_float32():
    a = inputs(12, dtype=torch.float32)
    expected = chunked_scan(*a, chunk_size=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = chunked_scan(*a, chunk_size=4)
    assert torch.equal(y, expected[0])
    assert torch.equal(last, expected[1])


def test_half_precision_inputs_give_half_precision_outputs():
    y, last = chunked_scan(*inputs(6, dtype=torch.bfloat16), chunk_size=4)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
