"""The softmax-attention layer of SpikingBrain-7B: exact attention over the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.attention import attention
from .heads import GroupedHeads
from .rotary import rotate


@dataclass
class RingCache:
    """The keys and values of the last W tokens: token t lies in slot ``t % W``.

    A token is written over the one that has just left the window, so nothing moves and nothing
    grows. Keys carry their rotary embedding, so a query that sees them all needs no order.

    Args:
        keys: [B, W, H, D].
        values: [B, W, H, D].
        length: How many tokens have been read.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes, the same at every context length."""
        return self.keys.nbytes + self.values.nbytes

    def clone(self) -> RingCache:
        """An independent copy."""
        return RingCache(self.keys.clone(), self.values.clone(), self.length)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Takes keys and values of T more tokens, [B, T, H, D]; their gradients stop here."""
        self.length += k.shape[1]
        kept = min(k.shape[1], self.keys.shape[1])
        self.keys[:, self._slots(kept)] = k[:, -kept:].detach()
        self.values[:, self._slots(kept)] = v[:, -kept:].detach()

    def seen_by_last(self) -> tuple[Tensor, Tensor]:
        """Views of what the last token sees, itself included, in any order: [B, n <= W, H, D]."""
        n = min(self.length, self.keys.shape[1])
        return self.keys[:, :n], self.values[:, :n]

    def seen_by_next(self) -> tuple[Tensor, Tensor]:
        """Copies of what the next token sees beside itself, in order: [B, n <= W - 1, H, D]."""
        slots = self._slots(min(self.length, self.keys.shape[1] - 1))
        return self.keys[:, slots], self.values[:, slots]

    def _slots(self, count: int) -> Tensor:
        """Where the last tokens lie, oldest first."""
        tokens = torch.arange(self.length - count, self.length, device=self.keys.device)
        return tokens % self.keys.shape[1]


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
        c = self.config
        q, k, v = self.project(x)
        q, k = (rotate(y, state.length, c.rope_theta) for y in (q, k))
        if x.shape[1] == 1 and not torch.is_grad_enabled():
            state.append(k, v)
            o = attention(q, *state.seen_by_last(), causal=False)
        else:
            old_k, old_v = state.seen_by_next()
            state.append(k, v)
            o = attention(q, torch.cat((old_k, k), 1), torch.cat((old_v, v), 1), window=c.window)
        return self.merge(o)
