"""Relations between calls that hold whatever the values are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..verdict.judge import Judgement, require_same_bits
from . import Context, check, has_elements, is_legal

UNDERFLOW = 1e-30  # smaller results may have passed through numbers that doubling does not scale exactly


@check(
    "outputs are linear in the inputs that their properties name: twice the input, exactly twice the output",
    level=3,
    applies=lambda spec, case: has_elements(spec, case) and bool(properties_of(spec).linear),
)
def linearity(ctx: Context) -> None:
    args = ctx.args()
    once = ctx.call(args)
    for output, inputs in properties_of(ctx.spec).linear.items():
        doubled = {n: 2 * t for n, t in ctx.spec.bind(args).items() if n in inputs and isinstance(t, Tensor)}
        twice = ctx.call(ctx.replaced(args, **doubled))[output]
        expected = torch.where(once[output].abs() > UNDERFLOW, 2 * once[output], twice)
        require_same_bits({output: twice}, {output: expected}, "doubled inputs")


def _with(case: Case, settings: Mapping[str, Any]) -> Case:
    return replace(case, attrs={**case.attrs, **settings})


def _same_settings(spec: OpSpec, case: Case) -> tuple[str, ...]:
    pairs = properties_of(spec.forward or spec).equivalent
    legal = [i for i, pair in enumerate(pairs) if all(is_legal(spec, _with(case, one)) for one in pair)]
    return tuple(map(str, legal))


@check(
    "settings that are called equivalent give the same results",
    level=2,
    parts=_same_settings,
    full=3,
)
def equivalent(ctx: Context) -> Judgement:
    one, other = properties_of(ctx.spec.forward or ctx.spec).equivalent[int(ctx.part)]
    plain = replace(ctx, case=_with(ctx.case, one))
    return plain.judge(ctx.call(ctx.replaced(plain.args(), **other)))


@check(
    "gradients through autograd are the backward operator's, on the forward's own outputs",
    level=3,
    applies=lambda spec, case: has_elements(spec, case) and bool(spec.differentiable),
    every_dtype=True,
    quick=2,
)
def autograd(ctx: Context) -> None:
    spec, a = ctx.spec, ctx.spec.bind(ctx.args())
    leaves = {n: a[n].requires_grad_() for n in spec.differentiable if a[n] is not None}
    outputs = dict(zip(spec.outputs, ctx.target.differentiable(spec, list(a.values())), strict=True))
    generator = torch.Generator(ctx.target.device).manual_seed(ctx.seed)
    gradients = {
        n: torch.randn(t.shape, generator=generator, device=t.device).to(t.dtype)
        for n, t in outputs.items()
        if t.requires_grad and t.numel()
    }
    found = torch.autograd.grad([outputs[n] for n in gradients], list(leaves.values()), list(gradients.values()))
    got = {f"grad_{n}": g for n, g in zip(leaves, found, strict=True)}
    plain = {n: t.detach() if isinstance(t, Tensor) else t for n, t in a.items()}
    if spec.backward is None:  # straight through
        require_same_bits(got, {f"grad_{n}": next(iter(gradients.values())) for n in leaves}, "autograd")
        return
    known = plain | {n: outputs[n].detach() for n in spec.saved} | {f"grad_{n}": g for n, g in gradients.items()}
    expected = ctx.target.call(spec.backward, [known.get(n) for n in spec.backward.arguments])
    require_same_bits(got, {n: expected[n] for n in got}, "autograd against the backward operator")
