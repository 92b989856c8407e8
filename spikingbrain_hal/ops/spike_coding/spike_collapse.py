"""The counts that spike trains stand for: the exact inverse of spike_expand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.rules import one_of
from ...declare.spec import Case, Input, Output
from .coding import BIT_ORDERS, CODINGS, MAX_COUNT, shifts


def reference(trains: Tensor, coding: str = "bitwise_signed", bit_order: str = "msb") -> Tensor:
    return _collapsed(trains, coding, bit_order).to(torch.int16)


def _collapsed(trains: Tensor, coding: str, bit_order: str) -> Tensor:
    t = trains.long()
    if coding in ("binary", "ternary"):
        return t.sum(0)
    step = shifts(t.shape[0], bit_order, t.dim() - 1, t.device).clamp_max(40)
    weights = 1 << step
    if coding == "twos_complement":
        weights = torch.where(step == min(t.shape[0] - 1, 40), -weights, weights)
    return (t * weights).sum(0)


def _spikes(a: Mapping[str, Any]) -> str | None:
    trains, signed = a["trains"], a["coding"] in ("ternary", "bitwise_signed")
    outside = trains[(trains > 1) | (trains < (-1 if signed else 0))]
    if not outside.numel():
        return None
    return f"trains holds {int(outside[0])}, expected {'-1, 0' if signed else '0'} and 1 for coding {a['coding']!r}"


def _within_int16(a: Mapping[str, Any]) -> str | None:
    counts = _collapsed(a["trains"], a["coding"], a["bit_order"])
    wide = counts[(counts > MAX_COUNT) | (counts < -MAX_COUNT - 1)]
    return f"trains stand for {int(wide[0])}, expected counts that fit int16" if wide.numel() else None


SPEC = operator(
    "spike_collapse",
    reference=reference,
    inputs={"trains": Input("S ...", "int8", fill="trains", doc="spike trains")},
    outputs={"counts": Output("...", "int16")},
    rules=(
        one_of("coding", *CODINGS),
        one_of("bit_order", *BIT_ORDERS),
        lambda a: None if a["S"] >= 1 else "S is 0, expected at least one step",
    ),
    contents=(_spikes, _within_int16),
    cases=(
        Case({"S": 5, "...": (3, 67)}, dict(coding="bitwise_signed")),
        Case({"S": 6, "...": (130,)}, dict(coding="bitwise_signed", bit_order="lsb")),
        Case({"S": 6, "...": (2, 3, 11)}, dict(coding="twos_complement")),
        Case({"S": 7, "...": (5,)}, dict(coding="twos_complement", bit_order="lsb")),
        Case({"S": 4, "...": (40,)}, dict(coding="bitwise")),
        Case({"S": 9, "...": (40,)}, dict(coding="binary")),
        Case({"S": 8, "...": (7, 9)}, dict(coding="ternary")),
        Case({"S": 16, "...": (21,)}, dict(coding="twos_complement")),
        Case({"S": 15, "...": (21,)}, dict(coding="bitwise_signed")),
        Case({"S": 4, "...": ()}, dict(coding="ternary")),
        Case({"S": 3, "...": (0, 4)}, dict(coding="bitwise")),
    ),
    bench=(Case({"S": 4, "...": (4096, 3584)}, dict(coding="bitwise_signed")),),
    source="SpikingBrain technical report, eqs. 22-23",
)


def spike_collapse(trains: Tensor, coding: str, bit_order: str = "msb") -> Tensor:
    """Read the counts that spike trains stand for; the exact inverse of :func:`spike_expand`.

    Args:
        trains: Spike trains, [S, ...], int8, values -1, 0 and 1 as the coding allows.
        coding: As for :func:`spike_expand`.
        bit_order: As for :func:`spike_expand`.

    Returns:
        The counts, [...], int16.

    Raises:
        ValueError: A value is outside the coding's alphabet, a count does not fit int16, or a name is unknown.

    Source: SpikingBrain technical report, eqs. 22-23.
    """
    counts: Tensor = call(SPEC, trains, coding, bit_order)
    return counts
