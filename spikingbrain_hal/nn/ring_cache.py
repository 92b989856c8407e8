"""What softmax attention carries from token to token: a ring over the window, or all keys so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.attention.attention import attention
from .layout import Layout
from .state import writable


@dataclass
class RingCache:
    """The keys and values of each row's last C tokens: token t lies in slot ``t % C``.

    A token is written over the one that has just left the ring, so nothing moves and nothing grows. Keys carry their
    rotary embedding, so a query that sees them all needs no order. The ring has the dtype of what it took last, which
    autocast decides where it is on.

    Args:
        keys: [B, C, H, D].
        values: [B, C, H, Dv].
        window: Keys that a query sees, its own included: C, or C + 1 where several tokens are read at once. C if 0.
        length: Columns read so far; of rows without masked tokens also their tokens.
        lengths: Tokens read so far of each row, [B], int64; none yet if absent.
    """

    keys: Tensor
    values: Tensor
    window: int = 0
    length: int = 0
    lengths: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.lengths is None:
            self.lengths = torch.zeros(self.keys.shape[0], dtype=torch.int64, device=self.keys.device)

    @property
    def nbytes(self) -> int:
        """Size in bytes, the same at every context length."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def visible(self) -> int | None:
        """Keys that a query sees, its own included; None for all."""
        return self.window or self.keys.shape[1]

    def clone(self) -> RingCache:
        """An independent copy."""
        return replace(self, keys=self.keys.clone(), values=self.values.clone())

    def select(self, rows: Tensor) -> RingCache:
        """A copy that holds the given rows, [B'], int64, in that order."""
        keys, values, lengths = (x.index_select(0, rows) for x in (self.keys, self.values, self.lengths))
        return replace(self, keys=keys, values=values, lengths=lengths)

    def append(self, k: Tensor, v: Tensor, layout: Layout | None = None) -> None:
        """Takes keys and values of more tokens; their gradients stop here.

        Args:
            k: Keys, [B, T, H, D], or as ``layout`` lays them out.
            v: Values, the same.
            layout: Layout of k and v; that of [B, T] if absent.
        """
        if layout is None:
            layout = Layout.of(k.shape[0], k.shape[1], k.device)
        capacity = self.keys.shape[1]
        rows, token = layout.rows, self.lengths[layout.rows] + layout.places
        k, v = k.detach().flatten(0, 1), v.detach().flatten(0, 1)
        lengths = self.lengths + layout.lengths
        if layout.shape[1] > capacity:
            kept = token >= lengths[rows] - capacity
            rows, token, k, v = rows[kept], token[kept], k[kept], v[kept]
        self.keys, self.values = writable(self.keys, k.dtype), writable(self.values, v.dtype)
        self.keys[rows, token % capacity] = k
        self.values[rows, token % capacity] = v
        self.length += layout.shape[1]
        self.lengths = lengths

    def seen_by_last(self) -> tuple[Tensor, Tensor]:
        """Views of what each row's last token sees, itself included, in any order: [B, n <= C, H, D].

        A row of fewer than n tokens has them in its first slots.
        """
        n = min(self.length, self.keys.shape[1])
        return self.keys[:, :n], self.values[:, :n]

    def seen_by_next(self) -> tuple[Tensor, Tensor]:
        """Copies of what each row's next token sees beside itself, in order and packed: [1, N, H, D]."""
        rows, slots, _ = self._past()
        return self.keys[rows, slots][None], self.values[rows, slots][None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Reads more tokens, one or many a row: they are kept, and each attends to what it sees.

        Args:
            q: Queries, [1, N, Hq, D] or [B, 1, Hq, D] as layout lays them out.
            k: Keys, [..., H, D], laid out the same.
            v: Values, [..., H, Dv], laid out the same.
            layout: Layout of the new tokens.

        Returns:
            The outputs, [..., Hq, Dv], and LSE, [1, Hq, N] or [B, Hq, 1].
        """
        if layout.step:
            self.append(k, v, layout)
            keys, values = self.seen_by_last()
            seen = self.lengths.clamp(max=keys.shape[1])
            return attention(q, keys, values, causal=False, kv_lengths=seen, return_lse=True)
        offsets, window = layout.cu_seqlens, self.visible
        new_k, new_v = k, v
        if self.length:
            rows, slots, counts = self._past()
            order = torch.cat((rows, layout.rows)).argsort(stable=True)
            k = torch.cat((self.keys[rows, slots].to(k.dtype), k[0]))[order][None]
            v = torch.cat((self.values[rows, slots].to(v.dtype), v[0]))[order][None]
            offsets = offsets + F.pad(counts.cumsum(0), (1, 0)).int()
            if layout.shape[1] == 1 and window is not None:
                window = self.keys.shape[1]
        o, lse = attention(
            q, k, v, window=window, cu_seqlens_q=layout.cu_seqlens, cu_seqlens_k=offsets, return_lse=True
        )
        self.append(new_k, new_v, layout)
        return o, lse

    def _past(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row and slot of each token that the next may see, packed in order, and how many there are a row."""
        visible = self.visible
        counts = self.lengths if visible is None else self.lengths.clamp(max=visible - 1)
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        first = self.lengths - counts.cumsum(0)  # token of a row's first one, less its place among all
        token = first[rows] + torch.arange(len(rows), device=rows.device)
        return rows, token % self.keys.shape[1], counts


@dataclass
class GrowingCache(RingCache):
    """All keys and values so far: a ring that is enlarged before it would turn.

    The room doubles when it is full, so the cost of growing is constant a token.
    """

    @property
    def visible(self) -> int | None:
        """None: a query sees all keys up to its own."""
        return None

    def append(self, k: Tensor, v: Tensor, layout: Layout | None = None) -> None:
        """As :meth:`RingCache.append`, after making room."""
        needed, room = self.length + (layout.shape[1] if layout else k.shape[1]), self.keys.shape[1]
        if needed > room:
            more = max(needed, 2 * room) - room
            pad = (0, 0, 0, 0, 0, more)
            self.keys, self.values = (F.pad(x, pad) for x in (self.keys, self.values))
        super().append(k, v, layout)
