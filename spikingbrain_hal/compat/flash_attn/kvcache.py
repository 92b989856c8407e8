"""flash-attn's decoding over a cache of keys and values, contiguous or in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.attention.attention import attention
from ..rotary import apply_rotary
from ..signatures import refuse
from .attention import Window, visible_keys

NAME = "flash_attn_with_kvcache"


class _Places:
    """Where the keys of each row of the batch lie in a cache: in its own row, in a chosen one, or in pages.

    Args:
        rows: Number of rows of the batch.
        cache: Keys, [cache rows, S, H, D], or [pages, page size, H, D].
        batch_idx: The cache's row of each row of the batch, [B], or None.
        table: The pages of each row of the batch, [B, pages of a row], or None.
    """

    def __init__(self, rows: int, cache: Tensor, batch_idx: Tensor | None, table: Tensor | None) -> None:
        self.size, self.table, self.batch_idx = cache.shape[1], table, batch_idx
        self.rows, self.device = rows, cache.device
        self.capacity = self.size if table is None else table.shape[1] * self.size
        for name, chosen in (("cache_batch_idx", batch_idx), ("block_table", table)):
            if chosen is not None and chosen.shape[0] != rows:
                raise ValueError(f"{NAME}: {name} is {list(chosen.shape)}, expected a first axis of B={rows}")
        if batch_idx is not None:
            _check_range("cache_batch_idx", batch_idx, cache.shape[0], "the cache's rows")
        elif table is None and cache.shape[0] != rows:
            raise ValueError(f"{NAME}: k_cache has {cache.shape[0]} rows, expected B={rows} without cache_batch_idx")

    def reach(self, lengths: int | Tensor, new: int, pages: int) -> Tensor:
        """Leaves of the table what the keys reach; the entries behind them are never looked at.

        Args:
            lengths: How many keys of each row are there, a number or [B].
            new: How many are added to each row.
            pages: How many pages or rows the cache has.

        Returns:
            How many keys of each row there are then, [B].

        Raises:
            ValueError: More keys than there is room for, or a page that is not there.
        """
        shortest, longest = 0, self.capacity - new
        if isinstance(lengths, int):
            shortest = longest = lengths
            lengths = torch.full((self.rows,), lengths, dtype=torch.int32, device=self.device)
        elif list(lengths.shape) != [self.rows]:
            raise ValueError(f"{NAME}: cache_seqlens is {list(lengths.shape)}, expected a number or [B={self.rows}]")
        elif lengths.device.type == "cpu" and lengths.numel():  # elsewhere looking would wait for the device
            shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 0:
            raise ValueError(f"{NAME}: cache_seqlens is {shortest}, expected at least 0")
        longest += new
        if longest > self.capacity:
            raise ValueError(f"{NAME}: {longest} keys to hold, the cache has room for {self.capacity}")
        lengths = lengths + new
        self.longest = max(longest, 1)
        if self.table is not None:
            table = self.table[:, : -(-self.longest // self.size)]
            first = torch.arange(table.shape[1], device=table.device) * self.size
            self.table = table.where(first < lengths[:, None], 0)
            _check_range("block_table", self.table, pages, "the cache's pages")
        return lengths

    def read(self, cache: Tensor) -> Tensor:
        """The keys or values of each row of the batch, [B, S, H, D]: the cache itself, or what is reached of it."""
        if self.table is not None:
            return cache.index_select(0, self.table.flatten()).view(len(self.table), -1, *cache.shape[2:])
        if self.batch_idx is not None:
            return cache[:, : self.longest].index_select(0, self.batch_idx)
        return cache

    def write(self, cache: Tensor, new: Tensor, ends: Tensor) -> None:
        """Puts new keys or values, [B, Tn, H, D], in front of ends, [B]."""
        place = ends.long()[:, None] + torch.arange(-new.shape[1], 0, device=new.device)
        row = torch.arange(len(new), device=new.device) if self.batch_idx is None else self.batch_idx.long()
        row = row[:, None] if self.table is None else self.table.long().gather(1, place // self.size)
        with torch.no_grad():
            cache[row, place if self.table is None else place % self.size] = new.to(cache.dtype)


def _check_range(name: str, numbers: Tensor, count: int, what: str) -> None:
    if numbers.device.type != "cpu" or not numbers.numel():
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"{NAME}: {name} holds {low if low < 0 else high}, expected numbers of {what}, 0 to {count - 1}"
        )


def _check_new(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Tensor | None) -> None:
    """Refuses new keys and values that the cache, or queries that the attention over it, would refuse half-way."""
    if q.dim() != 4 or k_cache.dim() != 4 or q.shape[3] != k_cache.shape[3] or q.shape[2] % max(k_cache.shape[2], 1):
        raise ValueError(
            f"{NAME}: q is {list(q.shape)} and k_cache {list(k_cache.shape)}, expected [B, Tq, Hq, D] and "
            f"[rows, S, H, D] with Hq a multiple of H"
        )
    if v_cache.dim() != 4 or v_cache.shape[:3] != k_cache.shape[:3]:
        raise ValueError(f"{NAME}: v_cache is {list(v_cache.shape)}, expected {[*k_cache.shape[:3], 'Dv']}")
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if new is not None and k is not None:
            wanted = [q.shape[0], k.shape[1], *cache.shape[2:]]
            if list(new.shape) != wanted:
                raise ValueError(f"{NAME}: {name} is {list(new.shape)}, expected {wanted}")


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Appends keys and values to a cache, in place, and attends over it.

    Pages and chosen rows of the cache are gathered, so they cost a copy of what the longest row reads.

    Args:
        q: Queries, [B, Tq, Hq, D].
        k_cache: Keys, [rows, S, H, D], or [pages, page size, H, D] with block_table.
        v_cache: Values, like k_cache.
        k: New keys, [B, Tn, H, D], written behind the cached ones.
        v: New values.
        rotary_cos: Turns q and the new keys by their position, [positions, R / 2].
        rotary_sin: As rotary_cos.
        cache_seqlens: How many keys of each row are valid before the new ones, a number or [B]; all if None, which
            leaves no room for new ones.
        cache_batch_idx: The cache's row of each row of the batch, [B].
        cache_leftpad: None; anything else is refused.
        block_table: The pages of each row, [B, pages of a row]; what stands behind the row's keys is not looked at.
        softmax_scale: Factor on the scores; ``D ** -0.5`` if absent.
        causal: Hide keys after the query, aligned at the bottom right.
        window_size: Visible keys to the left and right of the query's own, -1 for all.
        softcap: 0; anything else is refused.
        rotary_interleaved: Turn neighbouring channels together rather than halves.
        alibi_slopes: None; anything else is refused.
        num_splits: Accepted and ignored.
        return_softmax_lse: Also return the LSE.

    Returns:
        The outputs, [B, Tq, Hq, D], and if asked for the LSE, [B, Hq, Tq], float32.

    Raises:
        ValueError: New keys don't fit behind the cached ones, or arguments disagree; nothing is written then.
        UnsupportedOp: An argument asks for what no operator here computes; the message names it.
    """
    refuse(NAME, softcap=softcap, alibi_slopes=alibi_slopes, cache_leftpad=cache_leftpad)
    if (k is None) != (v is None) or (rotary_cos is None) != (rotary_sin is None):
        raise ValueError(f"{NAME}: k and v, and rotary_cos and rotary_sin, are given together or not at all")
    if block_table is not None and cache_batch_idx is not None:
        raise ValueError(f"{NAME}: block_table and cache_batch_idx are both given, expected one of them")
    causal, window = visible_keys(NAME, causal, window_size)
    _check_new(q, k_cache, v_cache, k, v)
    places = _Places(q.shape[0], k_cache, cache_batch_idx, block_table)
    if cache_seqlens is None:
        if k is not None:
            raise ValueError(f"{NAME}: cache_seqlens is None, expected lengths behind which k and v are written")
        cache_seqlens = places.capacity
    new = 0 if k is None else k.shape[1]
    ends = places.reach(cache_seqlens, new, k_cache.shape[0])
    if rotary_cos is not None and rotary_sin is not None:
        table = (rotary_cos, rotary_sin, rotary_interleaved)
        # Without a mask all queries of a call share the position of the first.
        spread = causal or window is not None
        q = apply_rotary(q if spread else q.flatten(1, 2).unsqueeze(1), *table, ends - new).reshape(q.shape)
        k = None if k is None else apply_rotary(k, *table, ends - new)
    for cache, added in ((k_cache, k), (v_cache, v)):
        if added is not None:
            places.write(cache, added, ends)
    keys, values = places.read(k_cache), places.read(v_cache)
    o, lse = attention(q, keys, values, causal, window, softmax_scale, kv_lengths=ends, return_lse=True)
    return (o, lse) if return_softmax_lse else o
