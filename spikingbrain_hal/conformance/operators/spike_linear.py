"""Properties of spike_linear: rows and outputs apart, and nothing but the bias where nothing spikes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..verdict.truth import Named
from . import ClosedForm, Independent, Properties, Values, register
from ._shared import ROWS, one_then, ones


def _magnitudes(a: Values) -> Values:
    """The most negative integers have no absolute value in their own type."""
    return {n: a[n].to(torch.int32).abs() for n in ("counts", "weight")}


def _silence(a: Values) -> Named:
    shape = (*a["counts"].shape[:-1], a["weight"].shape[0])
    bias = a["v_threshold"].new_zeros(shape[-1]) if a["bias"] is None else a["bias"]
    return {"y": bias.expand(shape)}


def _summed_groups(a: Values, first: float) -> Values:
    scales = one_then(first, a["scales"], 1) / a["group_size"]
    return ones(a, "counts", "weight", "v_threshold", "bias") | {"scales": scales}


def _whole_groups(known: Values) -> Sequence[int]:
    return [known["group_size"] * groups for groups in (1, 2, 3, 0)]


register(
    "spike_linear",
    Properties(
        magnitude=("v_threshold", "scales", "bias"),
        terms=_magnitudes,
        linear={"y": ("v_threshold", "bias")},
        independent=(ROWS, Independent("N")),
        closed_forms={"silence": ClosedForm(lambda a: {"counts": torch.zeros_like(a["counts"])}, _silence)},
        factors=("v_threshold", "scales"),
        one_large_term=_summed_groups,
        sizes={"K": _whole_groups},
    ),
    backward=Properties(terms=_magnitudes, factors=("grad_y",)),
)
