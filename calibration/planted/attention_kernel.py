"""A blocked attention kernel, whose settings make it another or a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Arguments
from .arithmetic import same

Mask = Callable[[Arguments, int, int, Tensor], Tensor]
Rounding = Callable[[Tensor], Tensor]


def spans(a: Arguments) -> Iterator[tuple[int, slice, slice]]:
    """(batch row, queries, keys) of each sequence."""
    if a["cu_seqlens_q"] is not None:
        q, k = a["cu_seqlens_q"].tolist(), a["cu_seqlens_k"].tolist()
        yield from ((0, slice(*q[n : n + 2]), slice(*k[n : n + 2])) for n in range(len(q) - 1))
        return
    q, k = a["q"], a["k"]
    for b in range(q.shape[0]):
        yield b, slice(0, q.shape[1]), slice(0, k.shape[1] if a["kv_lengths"] is None else int(a["kv_lengths"][b]))


def visible(a: Arguments, queries: int, keys: int, key: Tensor) -> Tensor:
    """Which of the keys numbered ``key`` each query sees."""
    last = torch.arange(queries)[:, None] + keys - queries
    seen: Tensor = key[None] <= last if a["causal"] else torch.ones(queries, len(key), dtype=torch.bool)
    if a["window"]:
        seen = seen & (key[None] > last - a["window"])
    seen = seen | (key[None] < a["sinks"])
    return seen


def grouped(head: Tensor, queries: int, keys: int) -> Tensor:
    """The key/value head of each query head."""
    return head // (queries // keys)


def blocked(
    a: Arguments,
    *,
    block: int = 16,
    inner: torch.dtype = torch.float32,
    heads: Callable[[Tensor, int, int], Tensor] = grouped,
    factor: Rounding = same,
    spans: Callable[[Arguments], Iterator[tuple[int, slice, slice]]] = spans,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over blocks of keys; ``settings`` go to :func:`online_softmax`."""
    q, k, v = (factor(a[n].to(inner)) for n in "qkv")
    o = torch.zeros(*q.shape[:3], v.shape[-1], dtype=inner)
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=inner)
    served = heads(torch.arange(q.shape[2]), q.shape[2], k.shape[2])
    for b, rows, keys in spans(a):
        qs = q[b, rows].transpose(0, 1)
        ks, vs = (t[b, keys][:, served].transpose(0, 1) for t in (k, v))
        out, total = online_softmax(a, qs, ks, vs, block, **settings)
        o[b, rows], lse[b, :, rows] = out.transpose(0, 1), total
    return o, lse


def online_softmax(
    a: Arguments,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    *,
    mask: Mask = visible,
    exp: Rounding = torch.exp,
    weights: Rounding = same,
    sums: Rounding = same,
    rescaled: bool = True,
    padded: bool = False,
    hidden: float = -torch.inf,
    shifted: bool = True,
    shift_in_lse: bool = True,
) -> tuple[Tensor, Tensor]:
    """Outputs and LSE of all heads of one sequence, [H, n, D] and [H, n], in one pass over the keys."""
    n, m = q.shape[1], k.shape[1]
    peak = q.new_full((len(q), n, 1), -torch.inf)
    total, out = torch.zeros_like(peak), q.new_zeros(len(q), n, v.shape[-1])
    for start in range(0, m, block):
        kb, vb = k[:, start : start + block], v[:, start : start + block]
        seen = mask(a, n, m, torch.arange(start, start + kb.shape[1]))
        if padded:
            rest = block - kb.shape[1]
            kb, vb, seen = F.pad(kb, (0, 0, 0, rest)), F.pad(vb, (0, 0, 0, rest)), F.pad(seen, (0, rest), value=True)
        scores = torch.where(seen, a["scale"] * (q @ kb.transpose(1, 2)), hidden)
        new = torch.maximum(peak, scores.amax(-1, keepdim=True))
        new = new if shifted else torch.zeros_like(new)
        safe = torch.where(new == -torch.inf, 0.0, new)
        weight, shrink = exp(scores - safe), exp(peak - safe)
        total = total * shrink + weight.sum(-1, keepdim=True)
        out = sums((out * shrink if rescaled else out) + weights(weight) @ vb)
        peak = new
    dead = total == 0
    lse = torch.where(dead, -torch.inf, total.log() + (peak if shift_in_lse else 0))
    return torch.where(dead, 0.0, out / torch.where(dead, 1.0, total)), lse[..., 0]
