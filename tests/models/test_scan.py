"""The chunked scan against its quadratic twin, and that against the recurrence written out."""

from __future__ import annotations

import pytest
import torch

from models.scan import chunked_scan, quadratic_scan

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


def test_forgetting_everything_at_once_gives_no_nan():
    x, g, b, c = inputs(12, dtype=torch.float32, grad=True)
    y, last = chunked_scan(x, g - 1e4, b, c, chunk_size=4)
    (y.sum() + last.sum()).backward()
    alone = (c * b).sum(-1).repeat_interleave(HEADS // GROUPS, dim=2).unsqueeze(-1) * x
    torch.testing.assert_close(y, alone)
    assert all(a.grad.isfinite().all() for a in (x, b, c))


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
