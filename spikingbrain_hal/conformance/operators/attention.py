"""Properties of attention: means of values where scores are equal, and what exp makes of the error of a score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.attention.attention import SPEC
from ..verdict.truth import Named
from . import ClosedForm, Independent, Pair, Properties, Relation, Values, register
from ._shared import GROUPED_HEADS, HEADS, SCALE, one_then, ones, per_query

INDEPENDENT = (HEADS, Independent("B"))
PACKED = ("cu_seqlens_q", "kv_lengths")


# ---- sums of absolute terms


def _largest_score(a: Values) -> float:
    """A bound on the sum of the absolute terms of any score."""
    if not a["q"].numel() or not a["k"].numel():
        return 0.0
    q, k = (float(a[name].norm(dim=-1).max()) for name in ("q", "k"))
    return abs(float(a["scale"])) * q * k


def _amplification(a: Values) -> float:
    """What exp makes of rounding: an error in proportion to a score's terms becomes one in proportion to the weight."""
    return 1.0 + _largest_score(a) / 16


def _terms(a: Values) -> dict[str, Any]:
    return {"v": _amplification(a) * a["v"], "lse": _largest_score(a)}


def _backward_terms(a: Values) -> dict[str, Tensor]:
    """A score's gradient is ``p (dp - mean dp)``; the LSE's is p, so twice the mean through it adds it instead."""
    gradients = {n: _amplification(a) * a[n] for n in ("grad_o", "grad_lse") if a[n] is not None}
    if "grad_o" in gradients:
        o, _ = SPEC.reference(*(a[name] for name in SPEC.arguments))
        mean = (gradients["grad_o"] * o).sum(-1).transpose(1, 2)
        gradients["grad_lse"] = gradients.get("grad_lse", 0) + 2 * mean
    return gradients


# ---- relations and formulas


def _window_of_every_key(a: Values) -> Pair:
    return Pair({"window": a["k"].shape[1]}, exact=False)


WINDOW = Relation(_window_of_every_key, shows=lambda a: a["causal"] and a["window"] == 0)
RELATIONS = {**SCALE, "window_of_every_key": WINDOW}


def _indifferent_queries(a: Values) -> Named:
    """Scores of 0 make the mean of the values, and the number of keys."""
    o = per_query(a, "v").mean(2, keepdim=True).expand(-1, -1, a["q"].shape[1], -1)
    count = a["q"].new_full((a["q"].shape[0], a["q"].shape[2], a["q"].shape[1]), a["k"].shape[1])
    return {"o": o.transpose(1, 2), "lse": count.log()}


def _one_key(a: Values) -> Named:
    """A single key has all the weight whatever its score is, and the score is the LSE."""
    scores = a["scale"] * (a["q"].transpose(1, 2) * per_query(a, "k")).sum(-1)
    return {"o": per_query(a, "v").expand(-1, -1, a["q"].shape[1], -1).transpose(1, 2), "lse": scores}


# ---- equal weights


def _equal_weights(a: Values) -> dict[str, Any]:
    return {"q": torch.zeros_like(a["q"]), "k": torch.ones_like(a["k"])}


def _large_first_value(a: Values, first: float) -> Values:
    return _equal_weights(a) | {"v": one_then(first, a["v"], 1)}


def _large_last_gradient(a: Values, first: float) -> Values:
    return _equal_weights(a) | ones(a, "v", "grad_lse") | {"grad_o": one_then(first, a["grad_o"], 1, -1)}


register(
    "attention",
    Properties(
        magnitude=("v",),
        terms=_terms,
        linear={"o": ("v",)},
        equivalent=((dict(window=0), dict(window=1 << 20)),),
        independent=INDEPENDENT,
        relations=RELATIONS,
        closed_forms={
            "indifferent_queries": ClosedForm(
                lambda a: {"q": torch.zeros_like(a["q"]), "causal": False, "window": 0}, _indifferent_queries, PACKED
            ),
            "one_key": ClosedForm(
                lambda a: {"k": a["k"][:, -1:], "v": a["v"][:, -1:], "causal": False, "window": 0, "sinks": 0},
                _one_key,
                PACKED,
            ),
        },
        factors=("k", "v"),
        one_large_term=_large_first_value,
        blocks=("windowed",),
        sizes=GROUPED_HEADS,
    ),
    backward=Properties(
        terms=_backward_terms,
        independent=INDEPENDENT,
        relations=RELATIONS,
        factors=("grad_o", "grad_lse"),
        one_large_term=_large_last_gradient,
    ),
)
