"""Kernels written again: variants that are right but different, and each of them with one bug planted.

Every function takes an operator's arguments and returns its outputs, as ``testing.python_backend`` wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal.registry import OPERATORS

Function = Callable[..., Any]
SINGLE = torch.float32


def reference(op: str) -> Function:
    return OPERATORS[op].reference


def changed(op: str, change: Callable[[dict[str, Any], list[Tensor]], None]) -> Function:
    """The reference, its outputs changed in place with the arguments at hand."""

    def run(*args: Any) -> Any:
        results = reference(op)(*args)
        outputs = [t.clone() for t in (results if isinstance(results, tuple) else (results,))]
        if all(t.numel() for t in outputs[:1]):
            change(OPERATORS[op].bind(args), outputs)
        return tuple(outputs) if isinstance(results, tuple) else outputs[0]

    return run


def given(op: str, **values: Any) -> Function:
    """The reference with some arguments replaced, by a value or by a function of what was given."""

    def run(*args: Any) -> Any:
        a = OPERATORS[op].bind(args)
        new = {n: v(a) if callable(v) else v for n, v in values.items()}
        return reference(op)(*(a | new).values())

    return run


# ---- gated linear attention


def sequences(a: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """(n, batch row, start, end) of each sequence."""
    if a["cu_seqlens"] is None:
        return [(b, b, 0, a["q"].shape[1]) for b in range(a["q"].shape[0])]
    ends = a["cu_seqlens"].tolist()
    return [(n, 0, ends[n], ends[n + 1]) for n in range(len(ends) - 1)]


def gla(
    *args: Any,
    inner: torch.dtype = SINGLE,
    block: int = 1,
    state_rounding: Callable[[Tensor], Tensor] = lambda s: s,
    key_rounding: Callable[[Tensor], Tensor] = lambda k: k,
    factor: Callable[[Tensor], Tensor] = lambda t: t,
    heads: Callable[[int, int, int], int] = lambda h, hq, hk: h * hk // hq,
    skip_decay_at: int = -1,
    leak: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """A head at a time, in blocks whose decays are products of factors at most one."""
    a = OPERATORS["gated_linear_attention"].bind(args)
    q, k, v, g = (a[n].to(inner) for n in "qkvg")
    g = g if g.dim() == 4 else g[..., None].expand(k.shape)
    o = torch.zeros(*q.shape[:3], v.shape[-1], dtype=inner)
    spans = sequences(a)
    final = torch.zeros(len(spans), k.shape[2], k.shape[3], v.shape[3], dtype=inner)
    for n, b, start, end in spans:
        for h in range(k.shape[2]):
            state = final[n, h] if a["initial_state"] is None else a["initial_state"][n, h].to(inner)
            served = [j for j in range(q.shape[2]) if heads(j, q.shape[2], k.shape[2]) == h]
            for s in range(start, end, block):
                at = slice(s, min(s + block, end))
                decay = g[b, at, h].exp() if s // block != skip_decay_at else torch.ones_like(g[b, at, h])
                kk, vv = factor(k[b, at, h]), factor(v[b, at, h])
                qq = [factor(q[b, at, j]) * a["scale"] for j in served]
                state, outputs = gla_block(state, decay, kk, vv, qq, state_rounding, key_rounding)
                for j, out in zip(served, outputs, strict=True):
                    o[b, at, j] = out
            final[n, h] = state
    if leak:
        o = o * (1 + leak * v.sum(1).mean())
    return o.to(a["q"].dtype), final.float() if a["output_final_state"] else torch.zeros(0)


def gla_block(
    state: Tensor,
    decay: Tensor,
    k: Tensor,
    v: Tensor,
    queries: list[Tensor],
    state_rounding: Callable[[Tensor], Tensor],
    key_rounding: Callable[[Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """One block: what each step still sees of the earlier ones is a running product of decays."""
    outputs = [torch.zeros(len(k), v.shape[1], dtype=k.dtype) for _ in queries]
    for t in range(len(k)):
        seen = torch.ones(k.shape[1], dtype=k.dtype)
        total = torch.zeros_like(state)
        for s in range(t, -1, -1):
            total = total + (seen * k[s])[:, None] * v[s][None]
            seen = seen * decay[s]
        total = total + torch.where(seen[:, None] == 0, 0.0, seen[:, None] * state)
        for out, q in zip(outputs, queries, strict=True):
            out[t] = q[t] @ total
    left = torch.ones(k.shape[1], dtype=k.dtype)
    new = torch.zeros_like(state)
    for s in range(len(k) - 1, -1, -1):
        new = new + key_rounding(left * k[s])[:, None] * v[s][None]
        left = left * decay[s]
    return state_rounding(new + torch.where(left[:, None] == 0, 0.0, left[:, None] * state)), outputs


def to_bfloat16(t: Tensor) -> Tensor:
    return t.bfloat16().to(t.dtype)


def split_bfloat16(t: Tensor) -> Tensor:
    """Two bfloat16 numbers for one float32: what a matrix unit without float32 can do."""
    high = to_bfloat16(t)
    return high + to_bfloat16(t - high)


def to_tf32(t: Tensor) -> Tensor:
    return (t.float().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32).to(t.dtype)


def gla_by_log_sums(*args: Any) -> Any:
    """Decay between two steps as exp of a difference of running sums: loses resets."""
    a = OPERATORS["gated_linear_attention"].bind(args)
    q, k, v, g = (a[n].float() for n in "qkvg")
    g = (g if g.dim() == 4 else g[..., None].expand(k.shape)).cumsum(1)
    rep = q.shape[2] // k.shape[2]
    k, v, g = (t.repeat_interleave(rep, 2) for t in (k, v, g))
    between = (g[:, :, None] - g[:, None]).exp()
    seen = torch.ones(q.shape[1], q.shape[1]).tril()[None, :, :, None]
    weights = torch.einsum("bthk,bshk,btshk->btsh", q * a["scale"], k, between) * seen
    o = torch.einsum("btsh,bshv->bthv", weights, v)
    _, final = reference("gated_linear_attention")(*args)
    return o.to(a["q"].dtype), final


def as_one_sequence(a: dict[str, Any], outputs: list[Tensor]) -> None:
    outputs[0].copy_(gla(*(a | {"cu_seqlens": None, "initial_state": None}).values())[0])


def unzeroed_padding(a: dict[str, Any], outputs: list[Tensor]) -> None:
    if a["cu_seqlens"] is not None:
        end = int(a["cu_seqlens"][-1])
        outputs[0][:, end:] = 1


# ---- attention


def one_wider(a: dict[str, Any]) -> int:
    return a["window"] + 1 if a["window"] else 0


def attention(*args: Any, block: int = 16, round_weights: bool = False) -> tuple[Tensor, Tensor]:
    """Blocked online softmax, a head at a time."""
    a = OPERATORS["attention"].bind(args)
    q, k, v = a["q"], a["k"], a["v"]
    if a["cu_seqlens_q"] is not None or a["kv_lengths"] is not None or not k.shape[1]:
        return reference("attention")(*args)
    o = q.new_zeros(*q.shape[:3], v.shape[-1])
    lse = torch.zeros(q.shape[0], q.shape[2], q.shape[1])
    rep = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            row, out = online_softmax(a, q[b, :, h], k[b, :, h // rep], v[b, :, h // rep], block, round_weights)
            o[b, :, h], lse[b, h] = out.to(q.dtype), row
    return o, lse


def online_softmax(
    a: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, block: int, round_weights: bool
) -> tuple[Tensor, Tensor]:
    last = torch.arange(len(q))[:, None] + len(k) - len(q)
    peak = torch.full((len(q), 1), -torch.inf)
    total, out = torch.zeros(len(q), 1), torch.zeros(len(q), v.shape[1])
    for s in range(0, len(k), block):
        key = torch.arange(s, min(s + block, len(k)))[None]
        seen = (key <= last) if a["causal"] else torch.ones(len(q), key.shape[1], dtype=torch.bool)
        seen = seen & (key > last - a["window"]) if a["window"] else seen
        seen = seen | (key < a["sinks"])
        scores = (a["scale"] * (q.float() @ k[s : s + block].float().T)).masked_fill(~seen, -torch.inf)
        new = torch.maximum(peak, scores.amax(-1, keepdim=True))
        safe = new.masked_fill(new == -torch.inf, 0)
        weights = (scores - safe).exp()
        shrink = (peak - safe).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        used = weights.to(q.dtype).float() if round_weights else weights
        out = out * shrink + used @ v[s : s + block].float()
        peak = new
    dead = total == 0
    lse = (peak + total.log()).masked_fill(dead, -torch.inf)
    return lse[:, 0], torch.where(dead, 0.0, out / total.masked_fill(dead, 1))


# ---- neurons and the coder


def lif_in_another_order(*args: Any) -> Any:
    """The membrane as one product less, in float64, spikes and states rounded at the end."""
    a = OPERATORS["lif_scan"].bind(args)
    wide = {n: t.double() if isinstance(t, Tensor) else t for n, t in a.items()}
    spikes, final, v = reference("lif_scan")(*wide.values())
    return spikes.to(a["x"].dtype), final.float(), v.float()


def encode(*args: Any, rounding: Callable[[Tensor], Tensor] = torch.round, reciprocal: bool = False) -> Any:
    a = OPERATORS["spike_encode"].bind(args)
    _, threshold = reference("spike_encode")(*args)
    x = a["x"].float()
    ratio = x * (1 / threshold) if reciprocal else x / threshold
    ratio = torch.nan_to_num(ratio, nan=0.0, posinf=32767, neginf=-32767)
    return rounding(ratio).clamp(-32767, 32767).to(torch.int16), threshold


def away_from_zero(ratio: Tensor) -> Tensor:
    return ratio.sign() * (ratio.abs() + 0.5).floor()
