"""Properties of spike_encode: counts are judged under the threshold that was returned with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ...ops.spike_coding.spike_encode import LIMIT
from ..verdict.judge import UNIT_ROUNDOFF, WORKING_ROUNDOFF
from ..verdict.truth import Named, Truth
from . import ClosedForm, Pair, Properties, Relation, Values, register
from ._shared import ROWS, one_then, times


def count(ratio: Tensor) -> Tensor:
    """Spikes for an activation in units of its threshold, float64."""
    return torch.nan_to_num(ratio, nan=0.0, posinf=LIMIT, neginf=-LIMIT).round().clamp(-LIMIT, LIMIT)


def slack(ratio: Tensor, roundings: int) -> Tensor:
    """How far so many roundings may have moved a ratio."""
    return torch.where(ratio.isfinite(), roundings * WORKING_ROUNDOFF * ratio.abs(), 0.0)


def row_threshold(a: Values) -> tuple[Tensor, Tensor]:
    """v_threshold in float64, and the share of it that rounding the mean may decide.

    Where the call rounds the mean to the input's dtype, a mean beside a tie may go to either neighbour.
    """
    x = a["x"].double()
    mean = x.abs().mean(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    doubt = torch.zeros_like(mean)
    if a.get("mean_dtype") == "input":
        low, mean, high = (((1 + side * 2.0**-20) * mean).to(a["x"].dtype).double() for side in (-1, 0, 1))
        doubt = torch.where(low == high, 0.0, 2 * UNIT_ROUNDOFF[a["x"].dtype])
    return (mean / a["k"]).clamp(a.get("vth_min", 1e-5), a.get("vth_max", 1e4)), doubt


def sum_roundings(x: Tensor) -> float:
    """How many roundings a fair sum of a row may leave."""
    return 8.0 + math.sqrt(x.shape[-1])


def _replay(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    a = spec.bind(args)
    ratio = a["x"].double() / outputs["v_threshold"].double()
    doubt_of_count = slack(ratio, 2)
    threshold, doubt = row_threshold(a)
    return Truth(
        expected={"counts": count(ratio), "v_threshold": threshold},
        base=dict(zip(spec.outputs, spec.reference(*args), strict=True)),
        magnitude={},
        allowed={"v_threshold": threshold * (doubt + sum_roundings(a["x"]) * WORKING_ROUNDOFF)},
        floor={"counts": count(ratio - doubt_of_count)},
        ceiling={"counts": count(ratio + doubt_of_count)},
    )


def _activations_doubled(a: Values) -> Pair:
    return Pair(times(2.0, a, "x", "vth_min", "vth_max"), factors={"v_threshold": 0.5})


def _level_rows(a: Values) -> Named:
    """Every activation of a row with a single value is k spikes."""
    counts = torch.full_like(a["x"], -3.0)
    threshold = a["x"].abs()[..., :1] / 3.0
    return {"counts": counts} | ({"v_threshold": threshold} if a["mean_dtype"] == "float32" else {})


register(
    "spike_encode",
    Properties(
        replay=_replay,
        independent=(ROWS,),
        relations={"activations_doubled": Relation(_activations_doubled)},
        closed_forms={
            "level_rows": ClosedForm(
                lambda a: {"x": torch.full_like(a["x"], -2.0), "k": 3.0, "vth_min": 1e-5, "vth_max": 1e4}, _level_rows
            )
        },
        one_large_term=lambda a, first: {"x": one_then(first, a["x"], -1), "k": 1.0},
        huge=Case({"...": (16,), "K": 1 << 10}),
    ),
)
