"""Softmax attention over a window, with grouped heads, packed sequences and sinks."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.axes import usual_scale
from ...declare.rules import in_range, lengths, multiple, not_empty, offsets
from ...declare.spec import Case, Input, Output, Time


def visible(queries: int, keys: int, causal: bool, window: int, sinks: int, device: Any) -> Tensor:
    """Which keys each query sees, bool [queries, keys], aligned at the bottom right."""
    last = torch.arange(queries, device=device)[:, None] + keys - queries
    key = torch.arange(keys, device=device)[None]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        seen &= key <= last
    if window:
        seen &= key > last - window
    return seen | (key < sinks)


def _pieces(
    q: Tensor, k: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, kv_lengths: Tensor | None
) -> list[tuple[int, slice, slice]]:
    if cu_q is not None and cu_k is not None:
        a, b = cu_q.tolist(), cu_k.tolist()
        return [(0, slice(a[n], a[n + 1]), slice(b[n], b[n + 1])) for n in range(len(a) - 1)]
    ends = [k.shape[1]] * q.shape[0] if kv_lengths is None else kv_lengths.tolist()
    return [(b, slice(0, q.shape[1]), slice(0, end)) for b, end in enumerate(ends)]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lengths: Tensor | None,
    causal: bool = True,
    window: int = 0,
    scale: float = 0.25,
    sinks: int = 0,
) -> tuple[Tensor, Tensor]:
    acc = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[2] // k.shape[2]
    o = q.new_zeros(*q.shape[:3], v.shape[-1], dtype=acc)
    lse = q.new_full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=acc)
    for b, rows, keys in _pieces(q, k, cu_seqlens_q, cu_seqlens_k, kv_lengths):
        if rows.stop == rows.start or keys.stop == keys.start:
            continue
        qs = q[b, rows].to(acc) * scale
        ks = k[b, keys].to(acc).repeat_interleave(group, 1)
        vs = v[b, keys].to(acc).repeat_interleave(group, 1)
        seen = visible(qs.shape[0], ks.shape[0], causal, window, sinks, q.device)
        scores = torch.einsum("qhd,khd->hqk", qs, ks).masked_fill(~seen, -torch.inf)
        alive = seen.any(-1)
        row_lse = torch.logsumexp(scores.masked_fill(~alive[:, None], 0), -1).masked_fill(~alive, -torch.inf)
        weights = torch.exp(scores - row_lse.masked_fill(~alive, 0)[..., None])
        o[b, rows] = _read(weights, vs, seen)
        lse[b, :, rows] = row_lse
    return o.to(q.dtype), lse


def _read(weights: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    if torch.isfinite(values).all():
        return torch.einsum("hqk,khd->qhd", weights, values)
    terms = weights[..., None] * values.transpose(0, 1)[:, None]  # a hidden value must not reach a sum as 0 * NaN
    return torch.where(seen[None, ..., None], terms, 0).sum(2).transpose(0, 1)


def _layout(a: Mapping[str, Any]) -> str | None:
    packed = [a["cu_seqlens_q"] is not None, a["cu_seqlens_k"] is not None]
    if packed[0] != packed[1]:
        return "cu_seqlens_q and cu_seqlens_k are given together or not at all"
    if packed[0] and a["B"] != 1:
        return f"B is {a['B']}, expected 1 with cu_seqlens_q and cu_seqlens_k"
    if packed[0] and a["kv_lengths"] is not None:
        return "kv_lengths is given with cu_seqlens_k, expected one of the two"
    if a["window"] and not a["causal"]:
        return f"window is {a['window']} with causal=False, expected causal=True with a window"
    return None


def flops(a: Mapping[str, Any]) -> float:
    """Two products a visible (query, key) pair; those that the mask hides are not counted."""
    (b, tq, hq, d), (tk, dv) = a["q"].shape, (a["k"].shape[1], a["v"].shape[-1])
    window = a["window"] or tk
    if not a["causal"]:
        return float(2 * b * hq * tq * tk * (d + dv))
    pairs = sum(min(max(i + tk - tq + 1, 0), window) for i in range(tq))
    return float(2 * b * hq * pairs * (d + dv))


SPEC = operator(
    "attention",
    reference=reference,
    inputs={
        "q": Input("B Tq Hq D", doc="queries"),
        "k": Input("B Tk H D", "q", doc="keys"),
        "v": Input("B Tk H Dv", "q", doc="values"),
        "cu_seqlens_q": Input("N+1", "index", fill="offsets", packs="Tq", doc="offsets of packed queries"),
        "cu_seqlens_k": Input("N+1", "index", fill="offsets", packs="Tk", doc="offsets of packed keys"),
        "kv_lengths": Input("B", "index", fill="lengths", packs="Tk", doc="valid keys of each row"),
    },
    outputs={"o": Output("B Tq Hq Dv", "q"), "lse": Output("B Hq Tq", "acc")},
    rules=(
        multiple("Hq", "H"),
        in_range("window", 0, text="a number of visible keys, at least 1, or None"),
        in_range("sinks", 0, text="a number of keys, at least 0"),
        not_empty("cu_seqlens_q", "cu_seqlens_k"),
        _layout,
    ),
    contents=(offsets("cu_seqlens_q", "Tq"), offsets("cu_seqlens_k", "Tk"), lengths("kv_lengths", "Tk")),
    differentiable=("q", "k", "v"),
    saved=("o", "lse"),
    autocast=("q", "k", "v"),
    time=Time("Tq", keys="Tk", causal="causal", exempt="sinks"),
    cases=(
        Case(dict(B=2, Tq=33, Tk=33, Hq=4, H=2, D=16, Dv=16)),
        Case(dict(B=1, Tq=1, Tk=1, Hq=1, H=1, D=8, Dv=8)),
        Case(dict(B=1, Tq=150, Tk=150, Hq=7, H=1, D=128, Dv=128), dict(window=64)),
        Case(dict(B=1, Tq=200, Tk=200, Hq=2, H=2, D=64, Dv=64), dict(causal=False)),
        Case(dict(B=2, Tq=19, Tk=83, Hq=6, H=3, D=24, Dv=40)),
        Case(dict(B=1, Tq=40, Tk=17, Hq=2, H=1, D=32, Dv=32)),
        Case(dict(B=1, Tq=140, Tk=140, Hq=2, H=1, D=32, Dv=32), dict(window=17, sinks=5)),
        Case(dict(B=3, Tq=1, Tk=97, Hq=8, H=2, D=64, Dv=64), dict(window=48), given=("kv_lengths",)),
        Case(
            dict(B=1, Tq=60, Tk=60, Hq=4, H=2, D=16, Dv=16),
            dict(window=9),
            given=("cu_seqlens_q", "cu_seqlens_k"),
            ragged=(5, 0, 30, 1, 20),
        ),
        Case(dict(B=1, Tq=20, Tk=20, Hq=2, H=1, D=8, Dv=8), dict(window=1)),
        Case(dict(B=1, Tq=20, Tk=20, Hq=2, H=1, D=16, Dv=16), dict(scale=16.0)),  # exp overflows without its maximum
        Case(dict(B=2, Tq=0, Tk=9, Hq=2, H=1, D=8, Dv=8)),
        Case(dict(B=1, Tq=6, Tk=0, Hq=2, H=1, D=8, Dv=8)),
    ),
    bench=(
        Case(dict(B=1, Tq=8192, Tk=8192, Hq=4, H=4, D=128, Dv=128)),
        Case(dict(B=1, Tq=8192, Tk=8192, Hq=4, H=4, D=128, Dv=128), dict(window=1024)),
    ),
    flops=flops,
    products=("q", "k", "v"),
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Dao et al. 2022, arXiv:2205.14135",
)


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    sinks: int = 0,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    sinks: int = 0,
    *,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    sinks: int = 0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each query over the keys it sees.

    With ``p = i + Tk - Tq`` (the last query sees the last key), query i sees key j where ``j <= p`` if causal, and
    ``j > p - window`` with a window; the first ``sinks`` keys are seen by every query, also by those before them. A
    query that sees no key gives 0 and LSE -inf. Query head h reads key/value head ``h // (Hq / H)``.

    Args:
        q: Queries, [B, Tq, Hq, D], float32, bfloat16 or float16; Hq a multiple of H.
        k: Keys, [B, Tk, H, D], dtype of q.
        v: Values, [B, Tk, H, Dv], dtype of q.
        causal: Hide keys after the query.
        window: How many keys a query sees, its own included; all if None. Needs ``causal``.
        scale: Factor on the scores; ``D ** -0.5`` if absent.
        cu_seqlens_q: Offsets of sequences packed along Tq, [N + 1], int32 or int64; B must be 1. Past the last offset
            outputs are 0 and LSE -inf.
        cu_seqlens_k: The same for keys and values; given with cu_seqlens_q.
        kv_lengths: How many keys of each row are valid, [B], int32 or int64: ragged decode over a padded cache.
        sinks: How many first keys stay visible to every query.
        return_lse: Also return the logarithm of the softmax's denominator.

    Returns:
        The outputs, [B, Tq, Hq, Dv], dtype of q; with return_lse also LSE, natural logarithm, [B, Hq, Tq], float32.

    Raises:
        ValueError: Shapes disagree, window is below 1 or given without causal, or offsets are wrong.
        TypeError: A dtype or a type is not accepted.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    if window is None:
        window = 0
    elif not isinstance(window, (int, Integral, torch.SymInt)):
        raise TypeError(f"attention: window is {type(window).__name__}, expected a number of visible keys or None")
    elif window < 1:
        raise ValueError(f"attention: window is {window}, expected a number of visible keys, at least 1, or None")
    if not isinstance(return_lse, int):
        raise TypeError(f"attention: return_lse is {type(return_lse).__name__}, expected a bool")
    if scale is None:
        scale = usual_scale(q)
    o, lse = call(SPEC, q, k, v, cu_seqlens_q, cu_seqlens_k, kv_lengths, causal, window, scale, sinks)
    return (o, lse) if return_lse else o
