"""What a model carries from call to call, with the interface that ``generate`` asks of a cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..nn import Layout, LinearState, RingCache


@dataclass
class AttentionState:
    """What one layer carries: a memory, a cache of keys, or both.

    Args:
        linear: Of the linear branch.
        ring: Of the softmax branch.
        sinks: Keys and values of the sink tokens, each [1, S, H, D].
    """

    linear: LinearState | None
    ring: RingCache | None
    sinks: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(x.nbytes for x in (self.linear, self.ring, *(self.sinks or ())) if x is not None)

    def clone(self) -> AttentionState:
        """An independent copy."""
        return replace(self, linear=self.linear and self.linear.clone(), ring=self.ring and self.ring.clone())

    def select(self, rows: Tensor) -> AttentionState:
        """A copy that holds the given rows, [B'], int64, in that order."""
        return replace(self, linear=self.linear and self.linear.select(rows), ring=self.ring and self.ring.select(rows))


@dataclass
class GLAswaCache:
    """The state of a ``gla_swa`` model between calls: of constant size but for layers of full attention.

    It's filled by the first call that gets it and advanced in place by every call.

    Args:
        layers: The layers' states in order; empty before the first call.
        lengths: Tokens read so far of each row, without the sink tokens, [B], int64.
        columns: Columns read so far, masked ones included.
    """

    layers: list[AttentionState] = field(default_factory=list)
    lengths: Tensor | None = None
    columns: int = 0

    is_compileable = False
    is_sliding = False

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(layer.nbytes for layer in self.layers)

    def clone(self) -> GLAswaCache:
        """An independent copy, to read on from the same place twice."""
        return replace(self, layers=[layer.clone() for layer in self.layers])

    def advance(self, layout: Layout) -> Tensor:
        """Counts the tokens of a call; returns the position of each in its row, [N], int64.

        Raises:
            ValueError: The call has another number of rows than those before.
        """
        if self.lengths is not None and len(self.lengths) != layout.shape[0]:
            raise ValueError(f"GLAswaCache: the cache holds {len(self.lengths)} rows, the call has {layout.shape[0]}")
        first = torch.zeros_like(layout.lengths) if self.lengths is None else self.lengths
        self.lengths = first + layout.lengths
        self.columns += layout.shape[1]
        return first[layout.rows] + layout.places

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, masked ones included."""
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> None:
        """None: any length may be read."""
        return None

    def reset(self) -> None:
        """Forgets everything."""
        self.layers, self.lengths, self.columns = [], None, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the given rows, [B'], int64, in that order; a row may occur several times."""
        if self.lengths is not None:
            self.layers = [layer.select(indices.to(self.lengths.device)) for layer in self.layers]
            self.lengths = self.lengths[indices.to(self.lengths.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Gives each beam the state of the one it continues, [B], int64."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row the given number of times, next to each other."""
        if self.lengths is not None:
            self.batch_select_indices(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        """Not possible: a memory cannot be rolled back; :meth:`clone` it before reading on.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("GLAswaCache.crop: a memory cannot be rolled back; clone() it before reading on")
