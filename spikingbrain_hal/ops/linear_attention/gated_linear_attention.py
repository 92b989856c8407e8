"""Gated linear attention: one decaying key-value memory for each key/value head."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.axes import usual_scale
from ...declare.rules import multiple, not_empty, offsets
from ...declare.spec import Case, Input, Output, Time


def sequences(q: Tensor, cu_seqlens: Tensor | None) -> int:
    """How many sequences a call holds: the packed ones, or the batch."""
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def bounds(q: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, int, int]]:
    """(batch row, first step, end step) of every sequence."""
    if cu_seqlens is None:
        return [(b, 0, q.shape[1]) for b in range(q.shape[0])]
    return [(0, start, end) for start, end in pairwise(cu_seqlens.tolist())]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float = 0.25,
    output_final_state: bool = True,
) -> tuple[Tensor, Tensor]:
    acc = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, group = k.shape[2], q.shape[2] // k.shape[2]
    gate = g.to(acc) if g.dim() == 4 else g.to(acc)[..., None]
    outputs = q.new_zeros(*q.shape[:3], v.shape[-1], dtype=acc)
    states = []
    for n, (b, start, end) in enumerate(bounds(q, cu_seqlens)):
        state = q.new_zeros(heads, k.shape[-1], v.shape[-1], dtype=acc)
        if initial_state is not None:
            state = initial_state[n].to(acc)
        steps = []
        for t in range(start, end):
            write = k[b, t].to(acc)[..., None] * v[b, t].to(acc)[..., None, :]
            decay = gate[b, t, ..., None].exp()  # of used steps alone: padding may hold NaN
            state = torch.where(decay == 0, 0, decay * state) + write
            read = state.repeat_interleave(group, 0)
            steps.append(torch.einsum("hk,hkv->hv", scale * q[b, t].to(acc), read))
        if steps:
            outputs[b, start:end] = torch.stack(steps)
        states.append(state)
    empty = q.new_zeros(0, heads, k.shape[-1], v.shape[-1], dtype=acc)
    final = torch.stack(states) if states else empty
    return outputs.to(q.dtype), final if output_final_state else q.new_zeros(0, dtype=torch.float32)


def _packed(a: Mapping[str, Any]) -> str | None:
    if a["cu_seqlens"] is None or a["B"] == 1:
        return None
    return f"B is {a['B']}, expected 1 with cu_seqlens"


def flops(a: Mapping[str, Any]) -> float:
    """Multiply and add per state element: decay, write, and one read for each query head of the group."""
    (b, t, h, k), v, hq = a["k"].shape, a["v"].shape[-1], a["q"].shape[2]
    return float(b * t * k * v * (3 * h + 2 * hq))


SPEC = operator(
    "gated_linear_attention",
    reference=reference,
    inputs={
        "q": Input("B T Hq K", doc="queries"),
        "k": Input("B T H K", "q", doc="keys"),
        "v": Input("B T H V", "q", doc="values"),
        "g": Input("B T H K | B T H", "q|float32", fill="log_decay", doc="log decay, per channel or per head"),
        "initial_state": Input("N H K V", doc="memory before the first step"),
        "cu_seqlens": Input("N+1", "index", fill="offsets", packs="T", doc="offsets of packed sequences"),
    },
    outputs={
        "o": Output("B T Hq V", "q"),
        "final_state": Output("N H K V", "acc", when="output_final_state"),
    },
    derived={"N": sequences},
    rules=(multiple("Hq", "H"), not_empty("cu_seqlens"), _packed),
    contents=(offsets("cu_seqlens", "T"),),
    differentiable=("q", "k", "v", "g", "initial_state"),
    autocast=("q", "k", "v"),
    time=Time("T", state_in="initial_state", state_out="final_state"),
    cases=(
        Case(dict(B=2, T=63, Hq=6, H=2, K=16, V=24), given=("initial_state",)),
        Case(dict(B=1, T=1, Hq=1, H=1, K=8, V=8)),
        Case(dict(B=1, T=130, Hq=7, H=1, K=128, V=128), given=("initial_state",)),
        Case(dict(B=2, T=40, Hq=4, H=4, K=64, V=64), dict(scale=1.0, output_final_state=False)),
        Case(dict(B=1, T=37, Hq=9, H=3, K=7, V=5)),
        Case(dict(B=1, T=64, Hq=2, H=1, K=8, V=8), given=("initial_state",)),  # whole chunks, no tail
        Case(dict(B=1, T=50, Hq=4, H=2, K=24, V=32), given=("initial_state", "cu_seqlens"), ragged=(5, 0, 17, 1, 20)),
        Case(dict(B=0, T=5, Hq=2, H=1, K=8, V=8)),
        Case(dict(B=2, T=0, Hq=2, H=1, K=8, V=8), given=("initial_state",)),
    ),
    bench=(Case(dict(B=1, T=4096, Hq=28, H=4, K=128, V=128)),),
    flops=flops,
    products=("q", "k", "v"),
    source="Yang et al. 2023, arXiv:2312.06635, eq. 3; SpikingBrain technical report, section 3",
)


@overload
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: Literal[False] = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, None]: ...


@overload
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    *,
    output_final_state: Literal[True],
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]: ...


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend over a sequence through one decaying key-value memory for each key/value head.

    ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T`` and ``o_t = scale * S_t^T q_t``: the decay acts on the old memory, the
    output includes the present step. Sums and memory are float32 whatever the input dtype. A gate of -inf is an exact
    reset. Query head h reads the memory of key/value head ``h // (Hq / H)``; nothing is repeated.

    Args:
        q: Queries, [B, T, Hq, K], float32, bfloat16 or float16; Hq a multiple of H.
        k: Keys, [B, T, H, K], dtype of q.
        v: Values, [B, T, H, V], dtype of q.
        g: Natural logarithm of the decay, [B, T, H, K] for each channel or [B, T, H] for each head, at most 0, dtype
            of q or float32.
        scale: Factor on the queries; ``K ** -0.5`` if absent.
        initial_state: Memory before the first step, [N, H, K, V], any float dtype; N is B, or the number of packed
            sequences.
        output_final_state: Return the memory after the last step.
        cu_seqlens: Offsets of sequences packed along T, [N + 1], int32 or int64; B must be 1. A sequence of length 0
            hands its memory through; outputs past the last offset are 0.

    Returns:
        The outputs, [B, T, Hq, V], dtype of q; and the final memory, [N, H, K, V], float32, or None.

    Raises:
        ValueError: Two tensors disagree on an axis, Hq is not a multiple of H, or the offsets are wrong.
        TypeError: A dtype is not accepted.

    Source: Yang et al. 2023, arXiv:2312.06635, eq. 3 (recurrent form).
    """
    if scale is None:
        scale = usual_scale(q)
    o, final_state = call(SPEC, q, k, v, g, initial_state, cu_seqlens, scale, output_final_state)
    return o, final_state if output_final_state else None
