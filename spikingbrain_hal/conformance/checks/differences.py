"""Gradients against differences of the float64 reference: an oracle that autograd has no part in."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..verdict.judge import Judgement, Mismatch
from ..verdict.truth import Named, in_float64, named_results
from . import Context, check, has_elements

STEP = 2.0**-20
TOLERANCE = 2.0**-13  # fair float32 gradients are a hundred times better, wrong derivatives are worse
NOISE = 1e-8  # of a difference quotient in float64, as a share of the terms summed


def _has_gradient(spec: OpSpec, case: Case) -> bool:
    return spec.forward is not None and has_elements(spec, case)


def _nudged(ctx: Context, generator: Generator) -> list[Any]:
    """The case's arguments at a point beside its own, off ties and NaN, with what the forward gives there."""
    spec, forward = ctx.spec, ctx.spec.forward
    assert forward is not None
    a = spec.bind(ctx.args())
    for name in forward.differentiable:
        if a[name] is not None:
            known = a[name].masked_fill(a[name].isnan(), 0)
            a[name] = known * (1 + 2.0**-7 * _normal(a[name], generator)).to(a[name].dtype)
    a |= properties_of(spec).smooth
    saved = named_results(forward, forward.reference, [a[n] for n in forward.arguments])
    return list((a | {n: saved[n] for n in forward.saved}).values())


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _loss_terms(spec: OpSpec, a: Mapping[str, Any]) -> Tensor:
    """What the gradients are of, term by term: each output times its gradient. Discrete outputs are held."""
    forward = spec.forward
    assert forward is not None
    accepts = inspect.signature(forward.reference).parameters
    held = {n: a[n] for n in forward.saved if n in accepts}
    results = forward.reference(*(a[n] for n in forward.arguments), **held)
    outputs: Named = dict(zip(forward.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    given = {n: g for n in outputs if (g := a.get(f"grad_{n}")) is not None}
    terms = [torch.where(outputs[n].isfinite(), outputs[n] * g, 0.0).flatten() for n, g in given.items()]
    return torch.cat(terms)


def _slope(spec: OpSpec, a: Mapping[str, Any], name: str, direction: Tensor) -> tuple[float, float]:
    """The central difference of the loss along a direction, and what rounding leaves in it."""
    with torch.no_grad():
        ahead, behind = (_loss_terms(spec, {**a, name: a[name] + side * STEP * direction}) for side in (1, -1))
    return float((ahead - behind).sum()) / (2 * STEP), NOISE * float(ahead.abs().sum())


@check(
    "gradients agree with differences of the float64 reference along random directions",
    level=3,
    applies=_has_gradient,
    quick=2,
    full=8,
)
def directional(ctx: Context) -> Judgement:
    generator = Generator().manual_seed(zlib.crc32(f"{ctx.seed}/{ctx.spec.name}/{ctx.case.id}/direction".encode()))
    args = _nudged(ctx, generator)
    gradients = ctx.call(args)
    a = ctx.spec.bind(in_float64(ctx.spec, args))
    worst = 0.0
    for output, gradient in gradients.items():
        name = output.removeprefix("grad_")
        if a[name] is None:
            continue
        direction = _normal(a[name], generator)
        slope, noise = _slope(ctx.spec, a, name, direction)
        along = gradient.double() * direction
        error = abs(float(along.sum()) - slope)
        allowed = TOLERANCE * float(along.norm()) + noise
        if not error <= allowed:
            raise Mismatch(
                f"{output} along a random direction is {float(along.sum()):.6g}, the difference of the reference is "
                f"{slope:.6g}: {error / allowed:.3g} times what is allowed",
                error / allowed,
            )
        worst = max(worst, error / allowed)
    return Judgement(worst)
