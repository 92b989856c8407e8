"""What a model carries from call to call, with the interface that ``generate`` asks of a cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from ..nn import Layout, LinearState, RingCache
from ..nn.state import Advancing
from .configuration import GLAswaConfig

SHAPING = (
    "num_hidden_layers", "num_key_value_heads", "head_dim", "sliding_window", "released_decode_window", "rope_theta",
    "attn_layers", "parallel_attention", "full_attn_layers", "key_tied_decay", "num_sink_tokens", "w8aspike",
)  # fmt: skip
"""The keys of a configuration that shape the states or say what is in them."""


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


@dataclass(eq=False)
class GLAswaCache(Advancing, Cache):
    """The state of a ``gla_swa`` model between calls: of constant size but for layers of full attention.

    It's filled by the first call that gets it and advanced in place by every call.

    Args:
        layers: The layers' states in order; empty before the first call.
        lengths: Tokens read so far of each row, without the sink tokens, [B], int64.
        columns: Columns read so far, masked ones included.
        masked: Which of the columns up to the last with a masked token were real, bool [B, <= columns]; None if all.
        filled_by: What the model that filled it is like, by key of its configuration.
        broken: A call that was to advance it ended in an error, so it cannot be read on from; :meth:`reset` it.
    """

    layers: list[AttentionState] = field(default_factory=list)
    lengths: Tensor | None = None
    columns: int = 0
    masked: Tensor | None = None
    filled_by: dict[str, Any] = field(default_factory=dict)
    broken: bool = False

    is_compileable = False
    is_sliding = False
    is_linear = (False,)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(layer.nbytes for layer in self.layers)

    def clone(self) -> GLAswaCache:
        """An independent copy, to read on from the same place twice."""
        return replace(self, layers=[layer.clone() for layer in self.layers])

    def check(self, config: GLAswaConfig, rows: int) -> None:
        """Looks whether a model can read on from here.

        Args:
            config: Of the model.
            rows: Rows of the call.

        Raises:
            ValueError: The cache is another model's, or the call has another number of rows than those before.
        """
        for name, value in self.filled_by.items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"GLAswaCache: the cache was filled by a model whose {name} is {value}, not {getattr(config, name)}"
                )
        if self.lengths is not None and len(self.lengths) != rows:
            raise ValueError(f"GLAswaCache: the cache holds {len(self.lengths)} rows, the call has {rows}")

    def check_mask(self, past: Tensor) -> None:
        """Looks whether a mask says of columns that were read what they were read as.

        Args:
            past: Which of the last n columns read so far are real, bool [B, n].

        Raises:
            ValueError: It says something else; a memory can neither forget a token nor learn of one later.
        """
        first = self.columns - past.shape[1]
        wrong = past != self._real(len(past), past.device)[:, first:]
        if wrong.any():
            row = int(wrong.any(1).nonzero()[0])
            columns = [first + int(column) for column in wrong[row].nonzero()[:, 0]]
            shown = ", ".join(map(str, columns[:8])) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")
            now = "a real token" if past[row, columns[0] - first] else "masked"
            raise ValueError(
                f"GLAswaModel: attention_mask calls column {shown} of row {row} {now}, but an earlier call read it "
                "otherwise, and a memory can't take that back; read on from a clone() made before"
            )

    def fill(self, config: GLAswaConfig, layers: list[AttentionState]) -> None:
        """Takes the empty states of a model's layers, and what they are like."""
        self.layers, self.filled_by = layers, {name: getattr(config, name) for name in SHAPING}

    def places(self, layout: Layout) -> Tensor:
        """The place of each token of a call in its row, [N], int64."""
        return layout.places if self.lengths is None else self.lengths[layout.rows] + layout.places

    def advance(self, layout: Layout) -> None:
        """Counts the columns of a call whose layers have all been advanced."""
        if layout.mask is not None:
            self.masked = torch.cat((self._real(layout.shape[0], layout.mask.device), layout.mask), 1)
        self.lengths = layout.lengths if self.lengths is None else self.lengths + layout.lengths
        self.columns += layout.shape[1]
        self.finish()

    def _real(self, rows: int, device: torch.device) -> Tensor:
        """Which of the columns read so far are real, bool [B, columns]."""
        masked = torch.ones(rows, 0, dtype=torch.bool, device=device) if self.masked is None else self.masked
        return F.pad(masked, (0, self.columns - masked.shape[1]), value=True)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, masked ones included."""
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> None:
        """None: any length may be read."""
        return None

    def reset(self) -> None:
        """Forgets everything."""
        self.layers, self.lengths, self.columns, self.masked = [], None, 0, None
        self.filled_by, self.broken = {}, False

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the given rows, [B'], int64, in that order; a row may occur several times."""
        if self.lengths is not None:
            indices = indices.to(self.lengths.device)
            self.layers = [layer.select(indices) for layer in self.layers]
            self.lengths = self.lengths[indices]
            self.masked = None if self.masked is None else self.masked[indices]

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


def given_cache(past_key_values: Any, cache: Any) -> GLAswaCache | None:
    """The cache of a call, which may come by either of its names.

    Raises:
        TypeError: It is not a :class:`GLAswaCache`.
        ValueError: Both names are used, for different objects.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("GLAswaModel: past_key_values and cache are two names of one argument, expected one of them")
    given = cache if past_key_values is None else past_key_values
    if given is not None and not isinstance(given, GLAswaCache):
        raise TypeError(f"GLAswaModel: the cache is a {type(given).__name__}, expected a GLAswaCache or None")
    return given
