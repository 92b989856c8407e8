"""Neurons at infinite and NaN potentials: what fires, what a reset leaves, and derivatives by the formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ...ops.neurons.lif_scan import SPEC as LIF
from ...ops.neurons.surrogates import SURROGATES
from ..verdict.judge import Mismatch, compare_special_values
from ..verdict.truth import Named, in_float64, named_results
from . import Context, check

STEPS, NEURONS = 4, 16
TOLERANCE = 2.0**-12  # of a number's size, or of one: potentials are exact in float32, and a wrong slope is far off
RESETS = ("none", "soft", "hard")
# Numbers of few bits, so that spikes, and sides of a surrogate's jumps, are the same in float32 and in float64.
NUMBERS = {"decay": 0.5, "input_gain": 1.0, "v_rest": 0.0625, "v_threshold": 1.0, "v_reset": 0.125, "strict": False}
SHAPES = {"alpha": 1.5, "beta": 0.125, "count_rounding": "floor", "return_v": True}


def _currents(device: str) -> Tensor:
    """On a grid, one neuron in three all finite; in the others an infinity or NaN comes first, late, last, or both."""
    steps, neurons = torch.arange(STEPS)[:, None], torch.arange(NEURONS)
    currents = ((7 * steps + 3 * neurons) % 11 - 4) / 4.0
    special = (math.inf, -math.inf, math.nan)
    for neuron in range(10):
        currents[neuron // 3, neuron] = special[neuron % 3]
    currents[0, 10], currents[2, 10] = math.inf, -math.inf
    return currents.to(device)


def _calls(ctx: Context) -> list[dict[str, Any]]:
    """Every reset, at once or delayed, of spikes and of counts, with and without a floor, by the part's surrogate."""
    x = _currents(ctx.target.device)
    ones = torch.ones(NEURONS, device=x.device)
    tensors = {"x": x, "v0": 0 * ones, "decay_tensor": ones / 2, "v_threshold_tensor": ones}
    settings = itertools.product(RESETS, (False, True), (False, True), (1, 4), (-math.inf, -0.5))
    names = ("reset", "reset_next_step", "detach_reset", "max_count", "v_min")
    surrogate = {"surrogate": ctx.part or "sigmoid"}
    return [tensors | NUMBERS | SHAPES | surrogate | dict(zip(names, s, strict=True)) for s in settings]


def _with_gradients(a: dict[str, Any]) -> dict[str, Any]:
    """What the backward is given beside: the forward's spikes, and gradients that are no zeros."""
    forward = named_results(LIF, LIF.reference, [a[n] for n in LIF.arguments])
    given = {f"grad_{n}": torch.full_like(t, 0.75) for n, t in forward.items()}
    return a | given | {"spikes": forward["spikes"]}


def _expect_close(found: Named, expected: Named, what: str) -> None:
    for name, tensor in found.items():
        compare_special_values(f"{what}: {name}", tensor, expected[name])
        error = (tensor.double() - expected[name]).abs() / (1 + expected[name].abs())
        worst = float(torch.where(expected[name].isfinite(), error, 0.0).max())
        if worst > TOLERANCE:
            raise Mismatch(f"{what}: {name} is off by {worst:.3g} of its size", worst / TOLERANCE)


def _parts(spec: OpSpec, case: Case) -> tuple[str, ...]:
    return tuple(SURROGATES) if spec.forward else ("",)


@check(
    "neurons at infinite and NaN potentials fire, reset and have the derivatives that their formulas give there",
    level=3,
    applies=lambda spec, case: spec.name in (LIF.name, f"{LIF.name}_backward") and case is spec.cases[0],
    parts=_parts,
)
def nonfinite(ctx: Context) -> None:
    for a in _calls(ctx):
        a = a if ctx.spec is LIF else _with_gradients(a)
        args = [a[n] for n in ctx.spec.arguments]
        expected = named_results(ctx.spec, ctx.spec.reference, in_float64(ctx.spec, args))
        changed = ("reset", "reset_next_step", "detach_reset", "max_count", "v_min")
        _expect_close(ctx.call(args), expected, ", ".join(f"{n}={a[n]}" for n in changed))
