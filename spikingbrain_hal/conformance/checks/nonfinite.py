"""Infinite and NaN arguments: results are what the formulas give there."""

from __future__ import annotations

import torch

from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..verdict.judge import Mismatch, compare_special_values
from ..verdict.truth import Named, in_float64, named_results
from . import Context, check

TOLERANCE = 2.0**-12  # of a number's size, or of one: arguments are exact in float32, and a wrong value is far off


def _expect_close(found: Named, expected: Named, what: str) -> None:
    for name, tensor in found.items():
        compare_special_values(f"{what}: {name}", tensor, expected[name])
        error = (tensor.double() - expected[name]).abs() / (1 + expected[name].abs())
        worst = float(torch.where(expected[name].isfinite(), error, 0.0).max())
        if worst > TOLERANCE:
            raise Mismatch(f"{what}: {name} is off by {worst:.3g} of its size", worst / TOLERANCE)


def _parts(spec: OpSpec, case: Case) -> tuple[str, ...]:
    return tuple(properties_of(spec).nonfinite) if case is spec.cases[0] else ()


@check("where arguments are infinite or NaN, results are what the formulas give there", level=3, parts=_parts)
def nonfinite(ctx: Context) -> None:
    for what, a in properties_of(ctx.spec).nonfinite[ctx.part](ctx.target.device):
        args = [a[n] for n in ctx.spec.arguments]
        expected = named_results(ctx.spec, ctx.spec.reference, in_float64(ctx.spec, args))
        _expect_close(ctx.call(args), expected, what)
