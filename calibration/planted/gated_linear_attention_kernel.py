"""Gated linear attention as a recurrence and in chunks, whose settings make them others or wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Arguments
from .arithmetic import same

Rounding = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def sequences(a: Arguments) -> Iterator[tuple[int, int, int, int]]:
    """(n, batch row, start, end) of each sequence."""
    if a["cu_seqlens"] is None:
        yield from ((b, b, 0, a["q"].shape[1]) for b in range(a["q"].shape[0]))
    else:
        ends = a["cu_seqlens"].tolist()
        yield from ((n, 0, ends[n], ends[n + 1]) for n in range(len(ends) - 1))


def channels(a: Arguments, inner: torch.dtype = torch.float32) -> Tensor:
    """The gates of each channel, in the shape of the keys."""
    g: Tensor = a["g"].to(inner)
    return g if g.dim() == a["k"].dim() else g[..., None].expand(a["k"].shape)


def grouped(head: Tensor, queries: int, keys: int) -> Tensor:
    """The key/value head of each query head."""
    return head // (queries // keys)


def decayed(decay: Tensor, state: Tensor) -> Tensor:
    """The memory after its decay, [H, K] and [H, K, V]; a decay of 0 forgets whatever was there."""
    return torch.where(decay[..., None] == 0, 0.0, decay[..., None] * state)


def step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step: the output of each query head, and the memory after it. ``q`` comes grouped, [H, m, K]."""
    state = decayed(decay, state) + k[..., None] * v[:, None]
    return q @ state, state


def recurrent(a: Arguments, *, step: Step = step, heads: bool = True, carry: bool = False) -> tuple[Tensor, Tensor]:
    """Step by step. ``heads`` groups consecutive query heads; ``carry`` hands each sequence's memory to the next."""
    q, k, v = (a[n].float() for n in "qkv")
    (batch, steps, hq, width), h = q.shape, k.shape[2]
    q = q * a["scale"]
    q = q.unflatten(2, (h, hq // h)) if heads else q.unflatten(2, (hq // h, h)).transpose(2, 3)
    o, decay = torch.zeros(batch, steps, *q.shape[2:4], v.shape[-1]), channels(a).exp()
    spans = list(sequences(a))
    final = torch.zeros(len(spans), h, width, v.shape[-1])
    for n, b, start, end in spans:
        state = final[n] if a["initial_state"] is None else a["initial_state"][n].float()
        state = final[n - 1] if carry and n else state
        for t in range(start, end):
            o[b, t], state = step(q[b, t], k[b, t], v[b, t], decay[b, t], state)
        final[n] = state
    o = o if heads else o.transpose(2, 3)
    return o.flatten(2, 3), final if a["output_final_state"] else torch.zeros(0)


def chunked(
    a: Arguments,
    *,
    block: int = 16,
    inner: torch.dtype = torch.float32,
    factor: Rounding = same,
    exp: Rounding = torch.exp,
    key: Rounding = same,
    score: Rounding = same,
    memory: Rounding = same,
    ungated: int = -1,
    keeps_tail: bool = True,
) -> tuple[Tensor, Tensor]:
    """In blocks: scores within one, a memory between them; decays are products of factors at most one."""
    q, k, v = (factor(a[n].to(inner)) for n in "qkv")
    rep, g = q.shape[2] // k.shape[2], channels(a, inner)
    o, spans = torch.zeros(*q.shape[:3], v.shape[-1], dtype=inner), list(sequences(a))
    final = torch.zeros(len(spans), *k.shape[2:], v.shape[-1], dtype=inner)
    for n, b, start, end in spans:
        state = final[n] if a["initial_state"] is None else a["initial_state"][n].to(inner)
        for i, s in enumerate(range(start, end, block)):
            at = slice(s, min(s + block, end))
            decay = exp(g[b, at]) if i != ungated else torch.ones_like(g[b, at])
            queries = q[b, at] * a["scale"]
            o[b, at], new = _chunk(
                queries.unflatten(1, (k.shape[2], rep)), k[b, at], v[b, at], decay, state, key, score
            )
            state = memory(new) if keeps_tail or at.stop - at.start == block else state
        final[n] = state
    return o, final if a["output_final_state"] else torch.zeros(0)


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, key: Rounding, score: Rounding
) -> tuple[Tensor, Tensor]:
    """Outputs [L, Hq, V] and the memory after a block; ``seen`` is what each step leaves of each earlier key."""
    seen, left = torch.zeros_like(k), torch.ones_like(k[0])
    outputs = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for t in range(len(k)):
        seen[:t] = seen[:t] * decay[t]
        seen[t] = 1
        left = left * decay[t]
        scores = torch.einsum("hmk,shk->hms", q[t], seen[: t + 1] * k[: t + 1])
        inside = torch.einsum("hms,shv->hmv", score(scores), v[: t + 1])
        outputs[t] = inside + score(q[t] * left[:, None]) @ remembered(left, state)
    write = torch.einsum("shk,shv->hkv", key(seen * k), v)
    return outputs.flatten(1, 2), decayed(left, state) + write


def remembered(left: Tensor, state: Tensor) -> Tensor:
    """The memory, without what is forgotten: 0 times infinity is not 0."""
    return torch.where(left[..., None] == 0, 0.0, state)
