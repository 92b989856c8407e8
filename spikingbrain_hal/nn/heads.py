"""The projections into and out of grouped heads, which both attention layers share."""

from __future__ import annotations

from torch import Tensor, nn

from .config import SpikingBrainConfig
from .spiking import SpikeCoder, SpikingLinear


class GroupedHeads(nn.Module):
    """Many query heads, fewer key and value heads, and the projection of their outputs back.

    q, k and v have biases, the output projection has none.

    Args:
        config: Sizes of the model; with spiking_projections the four projections read spikes.
    """

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        c = self.config = config
        query_size, kv_size = c.query_heads * c.head_dim, c.kv_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, query_size)
        self.k_proj = nn.Linear(c.hidden_size, kv_size)
        self.v_proj = nn.Linear(c.hidden_size, kv_size)
        if c.spiking_projections:
            self.spikes: nn.Module = SpikeCoder(c.spike_k)
            self.o_proj: nn.Linear = SpikingLinear(query_size, c.hidden_size, False, c.spike_k)
        else:
            self.spikes = nn.Identity()
            self.o_proj = nn.Linear(query_size, c.hidden_size, False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps x, [B, T, hidden_size], to q, [B, T, Hq, D], and k and v, [B, T, H, D]."""
        c, s, rows = self.config, self.spikes(x), x.shape[:-1]
        q = self.q_proj(s).view(*rows, c.query_heads, c.head_dim)
        k = self.k_proj(s).view(*rows, c.kv_heads, c.head_dim)
        v = self.v_proj(s).view(*rows, c.kv_heads, c.head_dim)
        return q, k, v

    def merge(self, o: Tensor) -> Tensor:
        """Maps the heads' outputs, [B, T, Hq, D], to [B, T, hidden_size]."""
        y: Tensor = self.o_proj(o.flatten(-2))
        return y
