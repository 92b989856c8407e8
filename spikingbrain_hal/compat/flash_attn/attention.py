"""flash-attn's functions on :func:`spikingbrain_hal.ops.attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import UnsupportedOp
from ...ops.attention.attention import attention
from ..signatures import refuse

Window = tuple[int | None, int | None]
Result = Tensor | tuple[Tensor, Tensor, None]


def visible_keys(function: str, causal: bool, window_size: Window) -> tuple[bool, int | None]:
    """flash-attn's window as ``causal`` and ``window`` of our operator, which counts the query's own key.

    Args:
        function: Name of the caller.
        causal: Hide keys after the query.
        window_size: Keys visible to the left and to the right of the query's own; -1 or None for all.

    Raises:
        UnsupportedOp: Some but not all keys after the query are visible, or all of them but not all before it.
    """
    left, right = (-1 if side is None else side for side in window_size)
    if causal or right == 0:
        return True, None if left < 0 else left + 1
    if left < 0 and right < 0:
        return False, None
    raise UnsupportedOp(
        f"{function}: window_size is {tuple(window_size)} with causal=False, expected (-1, -1), or a window that ends "
        f"at the query: (left, 0)"
    )


def _attend(
    function: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: Window,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_attn_probs: bool,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Result:
    refuse(function, dropout_p=dropout_p, softcap=softcap, alibi_slopes=alibi_slopes)
    causal, window = visible_keys(function, causal, window_size)
    if cu_seqlens_q is None:
        o, lse = attention(q, k, v, causal, window, softmax_scale, return_lse=True)
        return (o, lse, None) if return_attn_probs else o
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    o, lse = attention(q, k, v, causal, window, softmax_scale, cu_seqlens_q, cu_seqlens_k, return_lse=True)
    return (o.squeeze(0), lse.squeeze(0), None) if return_attn_probs else o.squeeze(0)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of queries, [B, Tq, Hq, D], over keys and values, [B, Tk, H, D].

    Args:
        q: Queries; query head h reads key/value head ``h // (Hq / H)``.
        k: Keys.
        v: Values.
        dropout_p: 0; anything else is refused.
        softmax_scale: Factor on the scores; ``D ** -0.5`` if absent.
        causal: Hide keys after the query, aligned at the bottom right.
        window_size: Visible keys to the left and right of the query's own, -1 for all.
        softcap: 0; anything else is refused.
        alibi_slopes: None; anything else is refused.
        deterministic: Accepted; results are always the same.
        return_attn_probs: Also return the log of the softmax's denominator and, for the probabilities, None.

    Returns:
        The outputs, [B, Tq, Hq, D], and if asked for the LSE, [B, Hq, Tq], float32, and None. A query that sees no key
        gives 0 and LSE -inf.

    Raises:
        UnsupportedOp: An argument asks for what no operator here computes; the message names it.
    """
    rest = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs)
    return _attend("flash_attn_func", q, k, v, *rest)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """:func:`flash_attn_func` over packed sequences: q is [total, Hq, D], k and v are [total, H, D].

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        cu_seqlens_q: Offsets of the queries, [N + 1].
        cu_seqlens_k: Offsets of the keys, [N + 1].
        max_seqlen_q: Accepted and ignored.
        max_seqlen_k: Accepted and ignored.
        dropout_p: As there, with all that follow.
        softmax_scale: As there.
        causal: As there.
        window_size: As there.
        softcap: As there.
        alibi_slopes: As there.
        deterministic: As there.
        return_attn_probs: As there; the LSE is [Hq, total].
        block_table: None; pages are for flash_attn_with_kvcache.

    Raises:
        UnsupportedOp: As there.
    """
    refuse("flash_attn_varlen_func", block_table=block_table)
    rest = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs)
    return _attend("flash_attn_varlen_func", q, k, v, *rest, cu_seqlens_q, cu_seqlens_k)


def flash_attn_qkvpacked_func(qkv: Tensor, *args: Any, **kwargs: Any) -> Result:
    """:func:`flash_attn_func` of queries, keys and values in one tensor, [B, T, 3, H, D]."""
    q, k, v = qkv.unbind(2)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_kvpacked_func(q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Result:
    """:func:`flash_attn_func` of keys and values in one tensor, [B, Tk, 2, H, D]."""
    k, v = kv.unbind(2)
    return flash_attn_func(q, k, v, *args, **kwargs)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *args: Any, **kwargs: Any
) -> Result:
    """:func:`flash_attn_varlen_func` of queries, keys and values in one tensor, [total, 3, H, D]."""
    q, k, v = qkv.unbind(1)
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, *args, **kwargs)


def flash_attn_varlen_kvpacked_func(q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Result:
    """:func:`flash_attn_varlen_func` of keys and values in one tensor, [total, 2, H, D]."""
    k, v = kv.unbind(1)
    return flash_attn_varlen_func(q, k, v, *args, **kwargs)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, None, None]:
    """The private forward that MoBA calls, as since 2.7: outputs, LSE [Hq, total], and None twice."""
    refuse("_flash_attn_varlen_forward", block_table=block_table, leftpad_k=leftpad_k, seqused_k=seqused_k)
    o, lse, _ = _attend(
        "_flash_attn_varlen_forward",
        *(q, k, v, dropout_p, softmax_scale, causal, (window_size_left, window_size_right), softcap, alibi_slopes),
        True,
        cu_seqlens_q,
        cu_seqlens_k,
    )
    return o, lse, None, None
