"""Properties of spike_quantize: the level that an activation was rounded to is read off the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ..verdict.judge import SMALLEST, UNIT_ROUNDOFF, WORKING_ROUNDOFF
from ..verdict.oracle import reference_truth
from ..verdict.truth import Truth
from . import Pair, Properties, Relation, Values, register
from ._shared import ROWS
from .spike_encode import count, row_threshold, slack, sum_roundings


def _is_exact(a: Values, threshold: Tensor) -> Tensor:
    """Rows whose threshold no order of rounding can move, so that their ties are ties for every kernel."""
    x = a["x"].double()
    if not _power_of_two(x.new_tensor(x.shape[-1] * a["k"])):
        return torch.zeros_like(threshold, dtype=torch.bool)
    halves = ((2 * x).round() == 2 * x) & (x.abs() < 2**10)
    exact: Tensor = halves.all(-1, keepdim=True) & _power_of_two(threshold)
    return exact


def _power_of_two(t: Tensor) -> Tensor:
    return torch.frexp(t).mantissa.eq(0.5)


def _replay(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """The value of the level is held to rounding."""
    truth = reference_truth(spec, args)
    a = spec.bind(args)
    threshold, _ = row_threshold(a)
    ratio = a["x"].double() / threshold
    doubt = torch.where(_is_exact(a, threshold), 0.0, slack(ratio, 8))
    given = outputs["y"].double() / threshold
    level = given.round().clamp(count(ratio - doubt), count(ratio + doubt))
    expected = level * threshold
    roundings = UNIT_ROUNDOFF[a["x"].dtype] + sum_roundings(a["x"]) * WORKING_ROUNDOFF
    allowed = expected.abs() * roundings + SMALLEST[a["x"].dtype]
    return Truth({"y": expected}, truth.base, truth.magnitude, allowed={"y": allowed})


def _moderate_activations_doubled(a: Values) -> Pair:
    """Its limits of the threshold are fixed, so rows stay within them."""
    x = a["x"].nan_to_num().clamp(-8, 8)
    return Pair({"x": 2 * x}, before={"x": x}, factors={"y": 0.5})


register(
    "spike_quantize",
    Properties(
        replay=_replay,
        independent=(ROWS,),
        relations={"moderate_activations_doubled": Relation(_moderate_activations_doubled)},
        huge=Case({"...": (16,), "K": 1 << 10}),
        blocks=("linear", "windowed"),
    ),
)
