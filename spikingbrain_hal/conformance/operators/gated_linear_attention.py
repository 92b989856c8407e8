"""Properties of gated_linear_attention: heads and sequences apart, sums of all writes where nothing is forgotten."""

from __future__ import annotations

from typing import Any

import torch

from ..verdict.truth import Named
from . import Call, ClosedForm, Independent, Properties, Values, register
from ._shared import GROUPED_HEADS, HEADS, SCALE, one_then, ones, per_query


def _nothing_forgotten(a: Values) -> Named:
    """Without decay the memory is the sum of all writes: a triangle of scores."""
    scores = (a["scale"] * a["q"].transpose(1, 2) @ per_query(a, "k").mT).tril()
    o = scores @ per_query(a, "v")
    final = torch.einsum("bthk,bthv->bhkv", a["k"], a["v"])
    if a["initial_state"] is not None:
        o = o + a["scale"] * a["q"].transpose(1, 2) @ per_query(a, "initial_state")
        final = final + a["initial_state"]
    return {"o": o.transpose(1, 2)} | ({"final_state": final} if a["output_final_state"] else {})


def _everything_forgotten(a: Values) -> Named:
    own = a["scale"] * (a["q"].transpose(1, 2) * per_query(a, "k")).sum(-1, keepdim=True)
    return {"o": (own * per_query(a, "v")).transpose(1, 2)}


def _stepped(call: Call, a: Values) -> Named:
    """One step after another, on the memory that the last one left."""
    (batch, steps, _, channels), values = a["q"].shape, a["v"].shape[-1]
    state = a["q"].new_zeros(batch, a["k"].shape[2], channels, values, dtype=torch.float32)
    if a["initial_state"] is not None:
        state.copy_(a["initial_state"])
    outputs = []
    for t in range(steps):
        step = [*(a[n][:, t].contiguous() for n in ("q", "k", "v", "g")), state, None, a["scale"]]
        found = call("gated_linear_attention_step_", step)
        outputs.append(found["o"])
        state = found["state"]
    return {"o": torch.stack(outputs, 1)} | ({"final_state": state} if a["output_final_state"] else {})


def _unforgotten(a: Values) -> dict[str, Any]:
    return ones(a, "q", "k", "initial_state") | {"g": torch.zeros_like(a["g"]), "scale": 1.0}


def _large_first_value(a: Values, first: float) -> Values:
    return _unforgotten(a) | {"v": one_then(first, a["v"], 1)}


def _large_last_gradient(a: Values, first: float) -> Values:
    return _unforgotten(a) | ones(a, "v", "grad_final_state") | {"grad_o": one_then(first, a["grad_o"], 1, -1)}


INDEPENDENT = (HEADS, Independent("B", ("N",)))

register(
    "gated_linear_attention",
    Properties(
        magnitude=("q", "k", "v", "initial_state"),
        linear={"o": ("v", "initial_state"), "final_state": ("v", "initial_state")},
        independent=INDEPENDENT,
        relations=SCALE,
        closed_forms={
            "nothing_forgotten": ClosedForm(
                lambda a: {"g": torch.zeros_like(a["g"])}, _nothing_forgotten, packed=("cu_seqlens",)
            ),
            "everything_forgotten": ClosedForm(
                lambda a: {"g": torch.full_like(a["g"], -torch.inf)}, _everything_forgotten, packed=("cu_seqlens",)
            ),
        },
        composed=_stepped,
        factors=("k", "v"),
        one_large_term=_large_first_value,
        blocks=("linear",),
        sizes=GROUPED_HEADS,
    ),
    backward=Properties(
        independent=INDEPENDENT,
        relations=SCALE,
        factors=("grad_o", "grad_final_state"),
        one_large_term=_large_last_gradient,
    ),
)
