"""The recurrence of discrete Mamba-2 (simple gated linear attention): in chunks, by one token, and a plain twin.

For every value head, with state S of shape [N, P] and log-decay g_t <= 0:

    S_t = exp(g_t) S_{t-1} + B_t x_t^T
    y_t = C_t S_t

The chunked form follows section 6 of "Transformers are SSMs" (Dao and Gu, 2024, arXiv:2405.21060): inside a
chunk the quadratic form, between chunks the state. State mathematics is float32 whatever the inputs are.

Shapes: B batch, T tokens, H value heads, Q query/key heads (each serves R = H / Q consecutive value heads), N
state, P head width, K chunks, L tokens per chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def chunked_scan(
    x_BTHP: Tensor,
    g_BTH: Tensor,
    b_BTQN: Tensor,
    c_BTQN: Tensor,
    *,
    chunk_size: int = 128,
    initial_state_BHNP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in chunks of `chunk_size` tokens; cost grows linearly with T.

    Args:
        x_BTHP: Inputs (values).
        g_BTH: Log-decays, nats, at most 0.
        b_BTQN: Input gates (keys).
        c_BTQN: Output gates (queries).
        chunk_size: Tokens per chunk, at least 1; changes speed, not the result.
        initial_state_BHNP: State before the first token; zeros when None.

    Returns:
        Outputs [B, T, H, P] in the dtype of `x_BTHP`, and the last state [B, H, N, P] in float32.
    """
    # Under autocast the matrix products below would silently drop to half precision.
    with torch.autocast(device_type=x_BTHP.device.type, enabled=False):
        return _chunked_scan(x_BTHP, g_BTH, b_BTQN, c_BTQN, chunk_size, initial_state_BHNP)


def _chunked_scan(
    x_BTHP: Tensor, g_BTH: Tensor, b_BTQN: Tensor, c_BTQN: Tensor, chunk_size: int, state_BHNP: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, width = x_BTHP.shape
    groups, states = b_BTQN.shape[2:]
    repeat = heads // groups
    length = min(chunk_size, tokens)
    chunks = -(-tokens // length)
    pad = chunks * length - tokens

    def split(a_BT: Tensor, *tail: int) -> Tensor:
        """[B, T, heads, ...] -> [B, K, Q, ..., L, tail]; zero padding neither decays nor feeds the state."""
        a_BT = a_BT.float()
        if pad:
            a_BT = F.pad(a_BT, (0, 0) * (a_BT.dim() - 2) + (0, pad))
        return a_BT.reshape(batch, chunks, length, *tail)

    x_BKQRLP = split(x_BTHP, groups, repeat, width).permute(0, 1, 3, 4, 2, 5)
    # Beyond e^-100 nothing of a float32 state is left; larger numbers would only blur the sums, or make inf - inf.
    g_BKQRL = split(g_BTH.clamp(min=-100), groups, repeat).permute(0, 1, 3, 4, 2)
    b_BKQLN = split(b_BTQN, groups, states).transpose(2, 3)
    c_BKQLN = split(c_BTQN, groups, states).transpose(2, 3)

    total_BKQRL = g_BKQRL.cumsum(-1)  # log-decay from the start of the chunk up to and with token t
    decay_BKQRLL = _decay(total_BKQRL)
    score_BKQLL = c_BKQLN @ b_BKQLN.transpose(-1, -2)
    y_BKQRLP = (score_BKQLL.unsqueeze(3) * decay_BKQRLL) @ x_BKQRLP

    # What each chunk adds to the state, and the state that enters each chunk.
    to_end_BKQRL = (total_BKQRL[..., -1:] - total_BKQRL).exp()
    added_BKQRNP = b_BKQLN.unsqueeze(3).transpose(-1, -2) @ (x_BKQRLP * to_end_BKQRL.unsqueeze(-1))
    if state_BHNP is None and chunks == 1:
        last_BQRNP = added_BKQRNP[:, 0]  # nothing enters the only chunk
    else:
        kept_BKQR = total_BKQRL[..., -1].exp()
        if state_BHNP is None:
            last_BQRNP = torch.zeros_like(added_BKQRNP[:, 0])
        else:
            last_BQRNP = state_BHNP.float().reshape(batch, groups, repeat, states, width)
        entering = []
        for chunk in range(chunks):
            entering.append(last_BQRNP)
            last_BQRNP = kept_BKQR[:, chunk, ..., None, None] * last_BQRNP + added_BKQRNP[:, chunk]
        from_start_BKQRLN = c_BKQLN.unsqueeze(3) * total_BKQRL.exp().unsqueeze(-1)
        y_BKQRLP = y_BKQRLP + from_start_BKQRLN @ torch.stack(entering, 1)

    y_BTHP = y_BKQRLP.permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * length, heads, width)
    return y_BTHP[:, :tokens].to(x_BTHP.dtype), last_BQRNP.reshape(batch, heads, states, width)


def scan_step(
    x_BTHP: Tensor, g_BTH: Tensor, b_BTQN: Tensor, c_BTQN: Tensor, *, initial_state_BHNP: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the recurrence by the one token of T = 1, as decoding does.

    Arguments and results as `chunked_scan`, its twin; written so that a compiler makes one kernel of it.
    """
    batch, _, heads, width = x_BTHP.shape
    groups, states = b_BTQN.shape[2:]
    shape_BQRNP = (batch, groups, heads // groups, states, width)
    x_BQR1P = x_BTHP.float().reshape(batch, groups, -1, 1, width)
    b_BQ1N1, c_BQ1N1 = (a.float().reshape(batch, groups, 1, states, 1) for a in (b_BTQN, c_BTQN))
    decay_BQR11 = g_BTH.float().exp().reshape(batch, groups, -1, 1, 1)
    state_BQRNP = torch.addcmul(decay_BQR11 * initial_state_BHNP.reshape(shape_BQRNP), b_BQ1N1, x_BQR1P)
    y_BQRP = (c_BQ1N1 * state_BQRNP).sum(-2)
    return y_BQRP.reshape(x_BTHP.shape).to(x_BTHP.dtype), state_BQRNP.reshape(batch, heads, states, width)


def quadratic_scan(
    x_BTHP: Tensor, g_BTH: Tensor, b_BTQN: Tensor, c_BTQN: Tensor, *, initial_state_BHNP: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Plain twin of `chunked_scan`: y = (mask o C B^T) x, one T x T matrix per head, in the inputs' dtype.

    Arguments and results as `chunked_scan`, which tests hold against this; memory grows with T squared.
    """
    repeat = x_BTHP.shape[2] // b_BTQN.shape[2]
    b_BTHN, c_BTHN = (a.repeat_interleave(repeat, dim=2) for a in (b_BTQN, c_BTQN))
    total_BHT = g_BTH.transpose(1, 2).cumsum(-1)
    score_BHTS = torch.einsum("bthn,bshn->bhts", c_BTHN, b_BTHN) * _decay(total_BHT)
    y_BTHP = torch.einsum("bhts,bshp->bthp", score_BHTS, x_BTHP)
    to_end_BHT = (total_BHT[..., -1:] - total_BHT).exp()
    state_BHNP = torch.einsum("bht,bthn,bthp->bhnp", to_end_BHT, b_BTHN, x_BTHP)
    if initial_state_BHNP is not None:
        y_BTHP = y_BTHP + torch.einsum("bht,bthn,bhnp->bthp", total_BHT.exp(), c_BTHN, initial_state_BHNP)
        state_BHNP = state_BHNP + total_BHT[..., -1].exp()[..., None, None] * initial_state_BHNP
    return y_BTHP, state_BHNP


def _decay(total: Tensor) -> Tensor:
    """[..., T] cumulative log-decays -> [..., T, T]: exp(sum over s+1..t), 0 above the diagonal."""
    tokens = total.shape[-1]
    difference = total.unsqueeze(-1) - total.unsqueeze(-2)
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=total.device).triu(1)
    # Masked before the exponential: above the diagonal it would overflow, and inf * 0 is nan in the gradient.
    return difference.masked_fill(future, float("-inf")).exp()
