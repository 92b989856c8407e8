"""flash-attn's decoding over a cache of keys and values, contiguous or in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.attention import attention
from ..rotary import apply_rotary
from ..signatures import refuse
from .attention import Window, visible_keys

NAME = "flash_attn_with_kvcache"


def _slots(rows: int, cache: Tensor, batch_idx: Tensor | None, block_table: Tensor | None) -> Tensor | None:
    """Where the keys of each row lie in the cache with its first two axes as one, [B, S]; None if just in order."""
    if block_table is not None:
        size = cache.shape[1]
        within = torch.arange(size, device=cache.device)
        return (block_table.long()[..., None] * size + within).flatten(1)
    if batch_idx is not None:
        place = torch.arange(cache.shape[1], device=cache.device)
        return batch_idx.long()[:, None] * cache.shape[1] + place
    if cache.shape[0] != rows:
        raise ValueError(f"{NAME}: k_cache has {cache.shape[0]} rows, expected B={rows} without cache_batch_idx")
    return None


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

    Pages and chosen rows of the cache are gathered, so they cost a copy of what is read.

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
        block_table: The pages of each row, [B, pages of a row].
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
        ValueError: New keys don't fit behind the cached ones, or arguments disagree.
        UnsupportedOp: An argument asks for what no operator here computes; the message names it.
    """
    refuse(NAME, softcap=softcap, alibi_slopes=alibi_slopes, cache_leftpad=cache_leftpad)
    if (k is None) != (v is None) or (rotary_cos is None) != (rotary_sin is None):
        raise ValueError(f"{NAME}: k and v, and rotary_cos and rotary_sin, are given together or not at all")
    if block_table is not None and cache_batch_idx is not None:
        raise ValueError(f"{NAME}: block_table and cache_batch_idx are both given, expected one of them")
    causal, window = visible_keys(NAME, causal, window_size)
    rows = q.shape[0]
    slots = _slots(rows, k_cache, cache_batch_idx, block_table)
    capacity = k_cache.shape[1] if slots is None else slots.shape[1]
    if cache_seqlens is None:
        if k is not None:
            raise ValueError(f"{NAME}: cache_seqlens is None, expected lengths behind which k and v are written")
        cache_seqlens = capacity
    if isinstance(cache_seqlens, int):
        lengths = torch.full((rows,), cache_seqlens, dtype=torch.int32, device=q.device)
    else:
        lengths = cache_seqlens
    if rotary_cos is not None and rotary_sin is not None:
        table = (rotary_cos, rotary_sin, rotary_interleaved)
        # Without a mask all queries of a call share the position of the first.
        spread = causal or window is not None
        q = apply_rotary(q if spread else q.flatten(1, 2).unsqueeze(1), *table, lengths).reshape(q.shape)
        k = None if k is None else apply_rotary(k, *table, lengths)
    if k is not None and v is not None:
        _append(k_cache, v_cache, k, v, slots, lengths, capacity)
        lengths = lengths + k.shape[1]
    keys, values = (_read(cache, slots) for cache in (k_cache, v_cache))
    o, lse = attention(q, keys, values, causal, window, softmax_scale, kv_lengths=lengths, return_lse=True)
    return (o, lse) if return_softmax_lse else o


def _append(
    k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slots: Tensor | None, lengths: Tensor, capacity: int
) -> None:
    place = lengths.long()[:, None] + torch.arange(k.shape[1], device=k.device)
    if place.device.type == "cpu" and place.numel() and int(place.max()) >= capacity:
        raise ValueError(f"{NAME}: {int(place.max()) + 1} keys to hold, the cache has room for {capacity}")
    if slots is None:
        slot = place + torch.arange(len(place), device=k.device)[:, None] * capacity
    else:
        slot = slots.gather(1, place)
    with torch.no_grad():
        for cache, new in ((k_cache, k), (v_cache, v)):
            row, column = slot // cache.shape[1], slot % cache.shape[1]
            cache[row, column] = new.to(cache.dtype)


def _read(cache: Tensor, slots: Tensor | None) -> Tensor:
    return cache if slots is None else cache[slots // cache.shape[1], slots % cache.shape[1]]
