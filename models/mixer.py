"""The discrete Mamba-2 mixer: what stands in a Llamba block where a Llama block has attention.

The recurrence is in `scan.py`. Travels with checkpoints as `trust_remote_code` code, so it imports only torch,
transformers and neighbours.

Shapes: B batch, T tokens, D model width, I inner width (all value heads), H value heads, P head width, Q query/key
heads, N state, C channels of the convolution (I + 2 Q N), W width of its kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .configuration_llamba import LlambaConfig
from .scan import chunked_scan, scan_step


def depthwise_conv(input_BTC: Tensor, weight_CW: Tensor, bias_C: Tensor | None) -> Tensor:
    """Causal depthwise convolution in float32, as W shifted products: [B, W - 1 + T, C] -> [B, T, C].

    Beside nn.Conv1d's own way this needs no transposes and takes a third of the time on a CPU.
    """
    input_BTC = input_BTC.float()
    kernel = weight_CW.shape[1]
    tokens = input_BTC.shape[1] - kernel + 1
    # Contiguous, as strided weights would not vectorise.
    weight_WC = weight_CW.float().t().contiguous()
    out_BTC = input_BTC[:, :tokens] * weight_WC[0]
    if bias_C is not None:
        out_BTC = out_BTC + bias_C.float()
    for k in range(1, kernel):  # in place: no gradient needs the partial sums
        out_BTC.addcmul_(input_BTC[:, k : k + tokens], weight_WC[k])
    return out_BTC


class CausalConv(nn.Conv1d):
    """`depthwise_conv` with the weights of nn.Conv1d.

    A module to be called, as only a call brings weights that wait in memory or on disk to the device.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, W - 1 + T, C] -> [B, T, C]."""
        return depthwise_conv(input, self.weight[:, 0], self.bias)


class LlambaMixer(nn.Module):
    """Discrete Mamba-2 mixer: decay straight from the input, no separate step size.

    Source: Bick et al., "Llamba: Scaling Distilled Recurrent Models for Efficient Language Processing"
    (arXiv:2502.14458).
    """

    def __init__(self, config: LlambaConfig, layer_idx: int) -> None:
        super().__init__()
        ssm = config.ssm_cfg
        self.layer_idx = layer_idx
        self.heads, self.groups, self.states = ssm["n_v_heads"], ssm["n_qk_heads"], ssm["d_state"]
        self.inner = config.d_inner
        self.channels = self.inner + 2 * self.groups * self.states
        self.kernel, self.chunk_size = ssm["d_conv"], ssm["chunk_size"]
        self.silu_after_conv = ssm["activation"] != "identity"
        bias = ssm["bias"]
        self.in_proj = nn.Linear(config.d_model, self.channels + self.inner + self.heads, bias=bias)
        self.conv1d = CausalConv(self.channels, self.channels, self.kernel, groups=self.channels, bias=ssm["conv_bias"])
        # With a bias in in_proj the gate has one already; hub checkpoints then hold no z_bias.
        self.z_bias = None if bias else nn.Parameter(torch.zeros(self.inner))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.out_proj = nn.Linear(self.inner, config.d_model, bias=bias)

    def forward(self, hidden_BTD: Tensor, cache: Cache | None = None, padding_mask_BT: Tensor | None = None) -> Tensor:
        """Mix along time.

        Args:
            hidden_BTD: Normed hidden states.
            cache: Continued from and updated in place when given.
            padding_mask_BT: 1 at tokens, 0 at padding of these T positions; padding leaves the state alone.

        Returns:
            [B, T, D], to be added to the residual stream.
        """
        widths = [self.channels, self.inner, self.heads]
        xbc_BTC, z_BTI, a_BTH = self.in_proj(hidden_BTD).split(widths, dim=-1)
        g_BTH = -F.softplus(a_BTH.float())
        if padding_mask_BT is not None:
            mask_BT1 = padding_mask_BT.unsqueeze(-1)
            xbc_BTC = xbc_BTC * mask_BT1.to(xbc_BTC.dtype)
            g_BTH = g_BTH * mask_BT1.to(g_BTH.dtype)
        state = None
        if cache is not None and cache.has_previous_state(self.layer_idx):  # before the convolution sets it
            state = cache.layers[self.layer_idx].recurrent_states[0]
        xbc_BTC = self._convolve(xbc_BTC, cache)
        x_BTI, b, c = xbc_BTC.split([self.inner] + 2 * [self.groups * self.states], dim=-1)
        if padding_mask_BT is not None:  # the convolution's bias must not enter the state either
            x_BTI = x_BTI * mask_BT1.to(x_BTI.dtype)
        x_BTHP = x_BTI.unflatten(-1, (self.heads, -1))
        b_BTQN, c_BTQN = (part.unflatten(-1, (self.groups, self.states)) for part in (b, c))
        if state is not None and hidden_BTD.shape[1] == 1:  # decoding
            y_BTHP, last_BHNP = scan_step(x_BTHP, g_BTH, b_BTQN, c_BTQN, initial_state_BHNP=state)
        else:
            y_BTHP, last_BHNP = chunked_scan(
                x_BTHP, g_BTH, b_BTQN, c_BTQN, chunk_size=self.chunk_size, initial_state_BHNP=state
            )
        if cache is not None:
            cache.update_recurrent_state(last_BHNP, self.layer_idx)
        y_BTI = (y_BTHP + self.D.float().unsqueeze(-1) * x_BTHP).flatten(-2)
        gate_BTI = z_BTI.float() if self.z_bias is None else z_BTI + self.z_bias.float()
        return self.out_proj((y_BTI * F.silu(gate_BTI)).to(hidden_BTD.dtype))

    def _convolve(self, xbc_BTC: Tensor, cache: Cache | None) -> Tensor:
        """[B, T, C] inputs to the scan, in float32; what was before these tokens is in the cache."""
        needed = xbc_BTC.shape[1] + self.kernel - 1
        if cache is not None:
            past_BCS = cache.update_conv_state(xbc_BTC.transpose(1, 2), self.layer_idx, conv_kernel_size=self.kernel)
            xbc_BTC = past_BCS[..., -needed:].transpose(1, 2)
        # At the start of a text there is less past than the kernel is wide.
        out_BTC = self.conv1d(F.pad(xbc_BTC, (0, 0, needed - xbc_BTC.shape[1], 0)))
        return F.silu(out_BTC) if self.silu_after_conv else out_BTC
