"""The softmax-attention layer of SpikingBrain-7B: exact attention over the most recent tokens."""

from __future__ import annotations

from torch import Tensor

from .heads import GroupedHeads
from .layout import Layout
from .ring_cache import RingCache
from .rotary import rotate


class WindowedAttention(GroupedHeads):
    """Causal softmax attention over a window, with grouped heads and rotary embedding.

    Scores are scaled by ``head_dim ** -0.5``.

    Args:
        config: Sizes of the model; ``window`` counts the query's own key.

    Source: SpikingBrain technical report, eq. 2; Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    def initial_state(self, batch: int) -> RingCache:
        """The empty cache, before the first token."""
        c, weight = self.config, self.k_proj.weight
        shape = (batch, c.window, c.kv_heads, c.head_dim)
        return RingCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def forward(self, x: Tensor, state: RingCache) -> Tensor:
        """Reads T tokens, one or many, and advances the state.

        Args:
            x: Inputs, [B, T, hidden_size].
            state: The tokens before them; holds these too on return, without gradient.

        Returns:
            The outputs, [B, T, hidden_size].
        """
        layout = Layout.of(x.shape[0], x.shape[1], x.device)
        q, k, v = self.project(x)
        q, k = (rotate(y, state.length, self.config.rope_theta) for y in (q, k))
        o, _ = state.attend(layout.pack(q), layout.pack(k), layout.pack(v), layout)
        return self.merge(layout.unpack(o))
