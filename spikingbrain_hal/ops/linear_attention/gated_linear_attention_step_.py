"""One step of gated linear attention in place: what a decoder or a server calls for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.axes import usual_scale
from ...declare.rules import multiple
from ...declare.spec import Case, Input, Output


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    slots: Tensor | None,
    scale: float = 0.25,
) -> Tensor:
    group = q.shape[1] // k.shape[1]
    acc = state.dtype
    rows = range(q.shape[0]) if slots is None else slots.tolist()
    o = q.new_zeros(*q.shape[:2], v.shape[-1])
    for b, slot in enumerate(rows):
        if slot == -1:
            continue
        decay = g[b].to(acc).exp()
        decay = decay[..., None] if decay.dim() == 2 else decay[:, None, None]
        old = torch.where(decay == 0, 0, decay * state[slot])
        state[slot] = old + k[b].to(acc)[..., None] * v[b].to(acc)[..., None, :]
        read = state[slot].repeat_interleave(group, 0)
        o[b] = torch.einsum("hk,hkv->hv", scale * q[b].to(acc), read).to(q.dtype)
    return o


def _one_slot_a_row(a: Mapping[str, Any]) -> str | None:
    if a["slots"] is not None or a["slot"] == a["B"]:
        return None
    return f"state has {a['slot']} slots, expected B={a['B']} without slots"


def _distinct_slots(a: Mapping[str, Any]) -> str | None:
    if a["slots"] is None:
        return None
    used: dict[int, int] = {}
    for row, slot in enumerate(a["slots"].tolist()):
        if not -1 <= slot < a["slot"]:
            return f"slots[{row}] is {slot}, expected a slot below {a['slot']}, or -1 to skip the row"
        if slot in used:
            return f"slots[{row}] is {slot}, which slots[{used[slot]}] is, expected distinct slots"
        if slot >= 0:
            used[slot] = row
    return None


SPEC = operator(
    "gated_linear_attention_step_",
    reference=reference,
    inputs={
        "q": Input("B Hq K", doc="queries"),
        "k": Input("B H K", "q", doc="keys"),
        "v": Input("B H V", "q", doc="values"),
        "g": Input("B H K | B H", "q|float32", fill="log_decay", doc="log decay"),
        "state": Input("slot H K V", "acc", doc="memories, written in place"),
        "slots": Input("B", "index", fill="slots", doc="slot of each row; -1 skips it"),
    },
    outputs={"o": Output("B Hq V", "q")},
    rules=(multiple("Hq", "H"), _one_slot_a_row),
    contents=(_distinct_slots,),
    mutates=("state",),
    autocast=("q", "k", "v"),
    cases=(
        Case(dict(B=3, Hq=6, H=2, K=16, V=24, slot=3)),
        Case(dict(B=4, Hq=4, H=2, K=7, V=5, slot=6), given=("slots",)),
        Case(dict(B=1, Hq=7, H=1, K=128, V=128, slot=1)),
        Case(dict(B=2, Hq=28, H=4, K=128, V=128, slot=2), dict(scale=0.088)),
        Case(dict(B=0, Hq=2, H=1, K=8, V=8, slot=0)),
    ),
    bench=(Case(dict(B=1, Hq=28, H=4, K=128, V=128, slot=1)),),
    flops=lambda a: float(a["k"].numel() * a["v"].shape[-1] * (3 + 2 * a["q"].shape[1] / a["k"].shape[1])),
    products=("q", "k", "v"),
    source="Yang et al. 2023, arXiv:2312.06635, eq. 3",
)


def gated_linear_attention_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    slots: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Advance each row's memory by one step in place, and read it.

    The step of :func:`gated_linear_attention`. Has no gradient.

    Args:
        q: Queries, [B, Hq, K], float32, bfloat16 or float16.
        k: Keys, [B, H, K], dtype of q.
        v: Values, [B, H, V], dtype of q.
        g: Natural logarithm of the decay, [B, H, K] or [B, H], dtype of q or float32.
        state: Memories, [slots, H, K, V], float32, innermost stride 1; overwritten.
        slots: Which memory each row advances, [B], int32 or int64, distinct; -1 skips the row, whose output is 0.
            Row b advances memory b if absent.
        scale: Factor on the queries; ``K ** -0.5`` if absent.

    Returns:
        The outputs, [B, Hq, V], dtype of q.

    Raises:
        ValueError: Shapes disagree, or a slot is out of range or given twice.
        TypeError: A dtype is not accepted.
        RuntimeError: A gradient is required of an input.

    Source: Yang et al. 2023, arXiv:2312.06635, eq. 3 (recurrent form).
    """
    if scale is None:
        scale = usual_scale(q)
    o: Tensor = call(SPEC, q, k, v, g, state, slots, scale)
    return o
