"""Spike coder, second half: integer counts as trains of spikes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.rules import in_range, one_of
from ...declare.spec import Case, Input, Output
from .coding import BIT_ORDERS, CODINGS, bounds, shifts, timesteps_needed


def reference(counts: Tensor, coding: str = "bitwise_signed", timesteps: int = 5, bit_order: str = "msb") -> Tensor:
    n = counts.long()
    step = shifts(timesteps, bit_order, n.dim(), n.device)
    if coding in ("binary", "ternary"):
        spent = torch.arange(timesteps, device=n.device).reshape(step.shape)
        return ((n.abs() > spent) * n.sign()).to(torch.int8)
    magnitude = n.abs() if coding == "bitwise_signed" else n
    bits = (magnitude >> step) & 1
    return (bits * n.sign() if coding == "bitwise_signed" else bits).to(torch.int8)


def _carried(a: Mapping[str, Any]) -> str | None:
    counts, (low, high) = a["counts"], bounds(a["coding"], a["timesteps"])
    outside = counts[(counts < low) | (counts > high)]
    if not outside.numel():
        return None
    return (
        f"counts holds {int(outside[0])}, expected values from {low} to {high} for coding "
        f"{a['coding']!r} with timesteps={a['timesteps']}"
    )


SPEC = operator(
    "spike_expand",
    reference=reference,
    inputs={"counts": Input("...", "int16", fill="counts", doc="spike counts")},
    outputs={"trains": Output("timesteps ...", "int8")},
    rules=(
        one_of("coding", *CODINGS),
        one_of("bit_order", *BIT_ORDERS),
        in_range("timesteps", 1, 32768, "a number of steps from 1 to 32768"),
    ),
    contents=(_carried,),
    cases=(
        Case({"...": (3, 67)}, dict(coding="bitwise_signed", timesteps=5)),
        Case({"...": (130,)}, dict(coding="bitwise_signed", timesteps=6, bit_order="lsb")),
        Case({"...": (2, 3, 11)}, dict(coding="twos_complement", timesteps=6)),
        Case({"...": (5,)}, dict(coding="twos_complement", timesteps=7, bit_order="lsb")),
        Case({"...": (40,)}, dict(coding="bitwise", timesteps=4)),
        Case({"...": (40,)}, dict(coding="binary", timesteps=9)),
        Case({"...": (7, 9)}, dict(coding="ternary", timesteps=8)),
        Case({"...": (21,)}, dict(coding="twos_complement", timesteps=16)),
        Case({"...": (21,)}, dict(coding="bitwise_signed", timesteps=15)),
        Case({"...": ()}, dict(coding="ternary", timesteps=4)),
        Case({"...": (0, 4)}, dict(coding="bitwise", timesteps=3)),
    ),
    bench=(Case({"...": (4096, 3584)}, dict(coding="bitwise_signed", timesteps=4)),),
    source="SpikingBrain technical report, eqs. 22-23",
)


def _timesteps(counts: Tensor, coding: str) -> int:
    """The fewest steps that carry every count; 1 for arguments that the operator refuses."""
    if not isinstance(coding, str) or coding not in CODINGS or not isinstance(counts, Tensor):
        return 1
    if counts.dtype != torch.int16 or not counts.numel() or torch._C._functorch.is_batchedtensor(counts):
        return 1
    low, high = (int(n.item()) for n in counts.aminmax())
    return timesteps_needed(coding, low, high)


def spike_expand(counts: Tensor, coding: str, timesteps: int | None = None, bit_order: str = "msb") -> Tensor:
    """Write integer counts as trains of spikes, exactly.

    Args:
        counts: Spike counts, [...], int16.
        coding: ``"binary"`` (one spike of 1 per unit, counts >= 0), ``"ternary"`` (one spike of +-1 per unit),
            ``"bitwise"`` (the bits of counts >= 0), ``"bitwise_signed"`` (the bits of the magnitude, each with the
            sign), ``"twos_complement"`` (the low bits, the highest one weighing negative).
        timesteps: Length S of the trains. If absent, the fewest that carry every count, at least 1; finding it waits
            for the device, so it raises inside compiled or captured regions.
        bit_order: For the bitwise codings, ``"msb"`` sends the highest bit first, ``"lsb"`` the lowest.

    Returns:
        The trains, [S, ...], int8, values -1, 0 and 1.

    Raises:
        ValueError: A count doesn't fit the coding or the steps, or a name is unknown. Nothing ever wraps.
        TypeError: counts is not int16, or another argument is not of its type.
        RuntimeError: timesteps is absent inside a compiled region.

    Source: SpikingBrain technical report, eqs. 22-23.
    """
    if timesteps is None:
        if torch.compiler.is_compiling():
            raise RuntimeError("spike_expand: timesteps is absent, expected a number inside a compiled region")
        if isinstance(counts, Tensor) and counts.is_meta:
            raise ValueError("spike_expand: timesteps is absent, expected a number, as meta tensors hold no counts")
        timesteps = _timesteps(counts, coding)
    trains: Tensor = call(SPEC, counts, coding, timesteps, bit_order)
    return trains
