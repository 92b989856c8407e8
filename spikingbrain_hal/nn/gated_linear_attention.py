"""The linear-attention layer of SpikingBrain-7B: a memory of constant size, not a growing cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.linear_attention.gated_linear_attention import gated_linear_attention
from ..ops.linear_attention.gated_linear_attention_step_ import gated_linear_attention_step_
from .config import SpikingBrainConfig
from .heads import GroupedHeads
from .layout import Layout
from .state import writable


@dataclass
class LinearState:
    """What a linear layer carries from token to token.

    Args:
        memory: One key-value memory for each key/value head, [B, H, K, V], float32.
    """

    memory: Tensor

    @property
    def nbytes(self) -> int:
        """Size in bytes, the same at every context length."""
        return self.memory.nbytes

    def clone(self) -> LinearState:
        """An independent copy."""
        return LinearState(self.memory.clone())

    def select(self, rows: Tensor) -> LinearState:
        """A copy that holds the given rows, [B'], int64, in that order."""
        return LinearState(self.memory.index_select(0, rows))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, layout: Layout) -> Tensor:
        """Reads more tokens, one or many a row, and holds the memory after them, without gradient.

        Args:
            q: Queries, [1, N, Hq, K] or [B, 1, Hq, K] as layout lays them out.
            k: Keys, [..., H, K], laid out the same.
            v: Values, [..., H, V], laid out the same.
            g: Log decays, [..., H, K], laid out the same.
            layout: Layout of the new tokens.

        Returns:
            The outputs, [..., Hq, V].
        """
        self.memory = writable(self.memory, torch.promote_types(q.dtype, torch.float32))
        if layout.step:
            q, k, v, g = (y.squeeze(1) for y in (q, k, v, g))
            return gated_linear_attention_step_(q, k, v, g, self.memory).unsqueeze(1)
        o, memory = gated_linear_attention(
            q, k, v, g, initial_state=self.memory, output_final_state=True, cu_seqlens=layout.cu_seqlens
        )
        self.memory = memory.detach()
        return o


class GatedLinearAttention(GroupedHeads):
    """Gated linear attention with grouped heads and a low-rank gate for each key channel.

    ``q = relu(x Wq + bq)``, ``k = relu(x Wk + bk)``, ``v = x Wv + bv`` and the log decay
    ``g = logsigmoid((x W1) W2 + b2) / gate_divisor``; then
    ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T`` and ``o_t = K^{-1/2} S_t^T q_t``; then an RMSNorm
    over the channels of each head, with one weight for all heads, and the output projection.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, section 3; Yang et al. 2023, arXiv:2312.06635, eq. 3.
    """

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__(config)
        self.g_proj = nn.Sequential(
            nn.Linear(config.hidden_size, config.gate_rank, bias=False),
            nn.Linear(config.gate_rank, config.kv_heads * config.head_dim),
        )
        self.head_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def initial_state(self, batch: int) -> LinearState:
        """The empty memory, before the first token."""
        c, weight = self.config, self.q_proj.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return LinearState(weight.new_zeros(batch, c.kv_heads, c.head_dim, c.head_dim, dtype=dtype))

    def forward(self, x: Tensor, state: LinearState) -> Tensor:
        """Reads T tokens, one or many, and advances the state.

        Args:
            x: Inputs, [B, T, hidden_size].
            state: The memory before them; holds the memory after them on return, without gradient.

        Returns:
            The outputs, [B, T, hidden_size].
        """
        layout = Layout.of(x.shape[0], x.shape[1], x.device)
        q, k, v = self.project(x)
        q, k = F.relu(q), F.relu(k)
        g = F.logsigmoid(self.g_proj(x)).view(k.shape) / self.config.gate_divisor
        q, k, v, g = (layout.pack(y) for y in (q, k, v, g))
        o = layout.unpack(state.attend(q, k, v, g, layout))
        return self.merge(self.head_norm(o))
