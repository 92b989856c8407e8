"""The attention of a ``gla_swa`` layer: linear, softmax over a window, or both in parallel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import (
    GrowingCache,
    Layout,
    LinearState,
    RingCache,
    SpikeLinear,
    Spikes,
    encode_spikes,
    int8_round,
    spike_round,
    turn,
)
from ..nn.state import writable
from ..ops.attention.attention import attention
from ..ops.linear_attention.gated_linear_attention import gated_linear_attention
from .cache import AttentionState
from .configuration import GLAswaConfig


def linear(config: GLAswaConfig, inputs: int, outputs: int, bias: bool) -> nn.Module:
    """A projection of the model, with integer weights in a W8ASpike model."""
    if config.w8aspike:
        return SpikeLinear(inputs, outputs, bias, config.spike_k, config.quant_weight_group_size)
    return nn.Linear(inputs, outputs, bias)


def as_read(config: GLAswaConfig, x: Tensor) -> Tensor | Spikes:
    """What the projections of x read: its spikes in a W8ASpike model, coded once for all of them."""
    return encode_spikes(x, config.spike_k) if config.w8aspike else x


def _accumulated(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class HybridAttention(nn.Module):
    """Grouped heads that read a decaying memory, a window of keys, or both.

    The linear branch: ``q = relu``, ``k = relu`` and log decay ``g = logsigmoid(gate) / gate_logit_normalizer``, then
    ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T`` and ``o_t = D^{-1/2} S_t^T q_t``, then an RMSNorm over each head. With
    ``key_tied_decay`` q and k are sigmoids and ``g = log(1 - k)``. The softmax branch has rotary embedding and scores
    scaled by ``D^{-1/2}``. In parallel, each branch's heads are normalised and ``w1 o_linear + w2 o_softmax`` goes to
    the output projection.

    Args:
        config: Sizes of the model.
        layer: Which layer it is, from 0.

    Source: SpikingBrain technical report, section 3 and eq. 6; Yang et al. 2023, arXiv:2312.06635, eq. 3.
    """

    def __init__(self, config: GLAswaConfig, layer: int) -> None:
        super().__init__()
        c = self.config = config
        self.is_linear = c.parallel_attention or layer not in c.attn_layers
        self.is_softmax = c.parallel_attention or layer in c.attn_layers
        self.is_full = layer in c.full_attn_layers
        kv_size = c.num_key_value_heads * c.head_dim
        self.q_proj = linear(c, c.hidden_size, c.hidden_size, True)
        self.k_proj = linear(c, c.hidden_size, kv_size, True)
        self.v_proj = linear(c, c.hidden_size, kv_size, True)
        self.o_proj = linear(c, c.hidden_size, c.hidden_size, False)
        if self.is_linear:
            if c.w8aspike and not c.key_tied_decay:
                self.gk_proj = linear(c, c.hidden_size, kv_size, True)  # the released low-rank product, multiplied out
            elif not c.key_tied_decay:
                low_rank = nn.Linear(c.hidden_size, c.gate_low_rank_dim, bias=False)
                self.gk_proj = nn.Sequential(low_rank, nn.Linear(c.gate_low_rank_dim, kv_size))
            self.g_norm = nn.RMSNorm(c.head_dim, eps=c.norm_eps)
        if self.is_linear and self.is_softmax:
            self.s_norm = nn.RMSNorm(c.head_dim, eps=c.norm_eps)
            self.branch_weights = nn.Parameter(torch.full((2,), 0.5))

    def initial_state(self, batch: int, like: Tensor) -> AttentionState:
        """The state before the first token.

        Args:
            batch: Rows.
            like: A tensor of the activations' dtype and device.
        """
        c = self.config
        memory = ring = None
        if self.is_linear:
            memory = self._empty_memory(batch, like)
        if self.is_softmax:
            slots = 1 if self.is_full else c.sliding_window + (not c.released_decode_window)
            keys, values = (like.new_zeros(batch, slots, c.num_key_value_heads, c.head_dim) for _ in range(2))
            ring = GrowingCache(keys, values) if self.is_full else RingCache(keys, values, c.sliding_window + 1)
        return AttentionState(memory, ring)

    def _empty_memory(self, batch: int, like: Tensor) -> LinearState:
        c = self.config
        shape = (batch, c.num_key_value_heads, c.head_dim, c.head_dim)
        return LinearState(like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32)))

    def forward(
        self, x: Tensor, layout: Layout, angles: tuple[Tensor, Tensor], state: AttentionState | None, sinks: int
    ) -> Tensor:
        """Reads the tokens of a call and advances the state.

        Args:
            x: Inputs, [1, sinks + N, hidden_size], or as layout lays them out.
            layout: Layout of the tokens after the sinks.
            angles: Rotary angles of all tokens.
            state: What came before; advanced in place. None: nothing did, and nothing is kept.
            sinks: How many sink tokens stand in front: all of them in the first call, later none.

        Returns:
            The outputs, in x's shape.
        """
        read = as_read(self.config, x)
        q, k, v = (p(read).unflatten(-1, (-1, self.config.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if not self.is_softmax:
            o = self.g_norm(self._recall(read, q, k, v, layout, state, sinks))
        elif not self.is_linear:
            o = self._attend(q, k, v, layout, angles, state, sinks)
        else:
            recalled = self.g_norm(self._recall(read, q, k, v, layout, state, sinks))
            attended = self.s_norm(self._attend(q, k, v, layout, angles, state, sinks))
            o = self.branch_weights[0] * recalled + self.branch_weights[1] * attended
        y: Tensor = self.o_proj(o.flatten(-2))
        return y

    def _recall(
        self,
        read: Tensor | Spikes,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        state: AttentionState | None,
        sinks: int,
    ) -> Tensor:
        if self.config.key_tied_decay:
            g = F.logsigmoid(-_accumulated(k))  # log(1 - sigmoid) loses all digits where the sigmoid is near 1
            q, k = q.sigmoid(), k.sigmoid()
        else:
            g = F.logsigmoid(_accumulated(self.gk_proj(read))).view(k.shape) / self.config.gate_logit_normalizer
            q, k = q.relu(), k.relu()
        memory = state.linear if state is not None else None
        if memory is None:
            memory = self._empty_memory(len(layout.lengths), q)
        if not sinks:
            return memory.attend(q, k, v, g, layout)
        q_s, k_s, v_s, g_s = (y[:, :sinks] for y in (q, k, v, g))
        o, learnt = gated_linear_attention(q_s, k_s, v_s, g_s, output_final_state=True)
        memory.memory = learnt.expand_as(memory.memory).contiguous()
        q, k, v, g = (y[:, sinks:] for y in (q, k, v, g))
        return torch.cat((o, memory.attend(q, k, v, g, layout)), 1)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        angles: tuple[Tensor, Tensor],
        state: AttentionState | None,
        sinks: int,
    ) -> Tensor:
        q, k = turn(q, *angles), turn(k, *angles)
        if self.config.w8aspike:
            q, k, v = spike_round(q, self.config.spike_k), int8_round(k), int8_round(v)
        of_sinks = None
        if state is not None and state.sinks is not None:
            state.sinks = of_sinks = (writable(state.sinks[0], k.dtype), writable(state.sinks[1], v.dtype))
        outputs = []
        if sinks:
            q_s, k_s, v_s = (y[:, :sinks] for y in (q, k, v))
            q, k, v = (y[:, sinks:] for y in (q, k, v))
            outputs = [attention(q_s, k_s, v_s, causal=False)]
            of_sinks = (k_s, v_s)
            if state is not None:
                state.sinks = (k_s.detach(), v_s.detach())
        if state is not None and state.ring is not None:
            o, lse = state.ring.attend(q, k, v, layout)
        else:
            window = None if self.is_full else self.config.sliding_window + 1
            cu_q, cu_k = layout.cu_seqlens, layout.cu_seqlens.clone()  # torch.compile refuses one tensor given twice
            o, lse = attention(q, k, v, window=window, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True)
        if of_sinks is not None:
            o = _with_sinks(o, lse, q, *of_sinks)
        return torch.cat((*outputs, o), 1)


def _with_sinks(o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over text and sinks together, from that over the text alone: the two softmaxes merged by LSE.

    Args:
        o: Outputs over the text, [A, N, Hq, D], A or N is 1.
        lse: Their LSE, [A, Hq, N].
        q: Queries, as o.
        k: Keys of the sinks, [1, S, H, D].
        v: Values of the sinks, the same.
    """
    step = q.shape[0] > 1
    other, other_lse = attention(q.transpose(0, 1) if step else q, k, v, causal=False, return_lse=True)
    if step:
        other, other_lse = other.transpose(0, 1), other_lse.transpose(0, 2)
    share = torch.sigmoid(other_lse - lse).transpose(1, 2)[..., None]
    return (o - share * (o - other)).to(o.dtype)
