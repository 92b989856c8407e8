"""Metamorphic relations: how results must change when arguments change, whatever the values are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..verdict.judge import FLOOR, UNIT_ROUNDOFF, WORKING_ROUNDOFF, Judgement, judge, require_same_bits
from ..verdict.oracle import sums_of_absolute_terms
from ..verdict.truth import Named, Truth, in_float64
from . import Context, axes_of, check, has_elements


def _generator(ctx: Context, what: str) -> Generator:
    return Generator().manual_seed(zlib.crc32(f"{ctx.seed}/{ctx.spec.name}/{ctx.case.id}/{what}".encode()))


def _shown(spec: OpSpec, case: Case) -> dict[str, Any]:
    """What is known of a case before its tensors are made: sizes, attributes, and which inputs are given."""
    attributes = {n: case.attrs.get(n, p.default) for n, p in spec.attributes.items()}
    return {**case.sizes, **attributes, **{n: n in case.given or n not in spec.optional for n in spec.inputs}}


# ---- linearity


def _coarse(like: Tensor, generator: Generator) -> Tensor:
    """Numbers of so few bits that a sum of three of them is exact in every dtype."""
    return (torch.randint(-32, 33, like.shape, generator=generator) / 8).to(like)


@check(
    "outputs are linear in the inputs that their properties name: f(a + 2 b) is f(a) + 2 f(b)",
    level=3,
    applies=lambda spec, case: has_elements(spec, case) and bool(properties_of(spec).linear),
    full=4,
)
def superposition(ctx: Context) -> Judgement:
    spec, args = ctx.spec, ctx.args()
    generator, worst = _generator(ctx, "superposition"), Judgement()
    for output, inputs in properties_of(spec).linear.items():
        given = {n: t for n, t in spec.bind(args).items() if n in inputs and t is not None}
        one, other = ({n: _coarse(t, generator) for n, t in given.items()} for _ in range(2))
        sums = {n: one[n] + 2 * other[n] for n in given}
        f_one, f_other, f_sums = (ctx.call(ctx.replaced(args, **values))[output] for values in (one, other, sums))
        absolute = in_float64(spec, ctx.replaced(args, **{n: one[n].abs() + 2 * other[n].abs() for n in given}))
        magnitude = sums_of_absolute_terms(spec, absolute)[output].abs()
        roundings = 3 * (FLOOR * WORKING_ROUNDOFF + 2 * UNIT_ROUNDOFF[f_sums.dtype])
        allowed = roundings * magnitude.clamp_min(float(magnitude.square().mean().sqrt()))
        expected = f_one.double() + 2 * f_other.double()
        truth = Truth({output: expected}, {output: f_sums}, {}, allowed={output: allowed})
        worst = worst.add(judge(spec, truth, {output: f_sums}))
    return worst


# ---- permutations


def _places(case: Case, axis: str) -> int:
    size = case.sizes[axis]
    return int(size) if axis != "..." else size[0] if size else 0


def _independent(spec: OpSpec, case: Case) -> tuple[str, ...]:
    return tuple(i.axis for i in properties_of(spec).independent if _places(case, i.axis) > 1)


def _permute(spec: OpSpec, name: str, tensor: Tensor, axes: Sequence[str], order: Tensor) -> Tensor:
    names = axes_of(spec, name, tensor)
    for axis in axes:
        if axis in names:
            block = tensor.shape[names.index(axis)] // len(order)
            whole = (order[:, None] * block + torch.arange(block)).flatten()
            tensor = tensor.index_select(names.index(axis), whole.to(tensor.device))
    return tensor


@check(
    "permuting heads, rows or the batch permutes the results",
    level=3,
    quick=2,
    full=4,
    parts=_independent,
)
def permuted(ctx: Context) -> Judgement:
    spec, args = ctx.spec, ctx.args()
    (chosen,) = (i for i in properties_of(spec).independent if i.axis == ctx.part)
    a = spec.bind(args)
    axes = (chosen.axis, *(chosen.along if not chosen.unless or a[chosen.unless] is None else ()))
    order = torch.randperm(_places(ctx.case, chosen.axis), generator=_generator(ctx, "order"))
    order = order.flip(0) if bool((order == torch.arange(len(order))).all()) else order
    moved = {n: _permute(spec, n, t, axes, order) for n, t in a.items() if isinstance(t, Tensor)}
    permuted_args = ctx.replaced(args, **moved)
    # not bit for bit: what a vector unit computes may differ from what is computed behind its last whole vector
    return ctx.judge(ctx.call(permuted_args), permuted_args, f"permuted along {ctx.part}")


# ---- inputs that may be narrower


def _broadcasts(spec: OpSpec, case: Case) -> tuple[str, ...]:
    """The given inputs whose last axis may be left out."""
    found = {n: [option.split() for option in d.axes.split("|")] for n, d in spec.inputs.items()}
    return tuple(
        n
        for n, options in found.items()
        if len(options) == 2 and options[0][:-1] == options[1] and (n not in spec.optional or n in case.given)
    )


@check("an input without its last axis is the same as one expanded along it", level=3, parts=_broadcasts, full=4)
def broadcast(ctx: Context) -> Judgement:
    args = ctx.args()
    whole = ctx.spec.bind(args)[ctx.part]
    narrow = whole.select(-1, 0).contiguous()
    found = ctx.call(ctx.replaced(args, **{ctx.part: narrow[..., None].expand_as(whole).contiguous()}))
    gradient = f"grad_{ctx.part}"
    if gradient in found:
        found[gradient] = found[gradient].double().sum(-1).to(narrow.dtype)
    return ctx.judge(found, ctx.replaced(args, **{ctx.part: narrow}), f"narrow {ctx.part}")


# ---- pairs of calls


def _related(spec: OpSpec, case: Case) -> tuple[str, ...]:
    shown = _shown(spec, case)
    return tuple(name for name, r in properties_of(spec).relations.items() if r.shows(shown))


@check("calls whose arguments are related have related results", level=3, parts=_related, quick=2, full=6)
def related(ctx: Context) -> Judgement | None:
    args = ctx.args()
    pair = properties_of(ctx.spec).relations[ctx.part].pair(ctx.spec.bind(args))
    first = ctx.replaced(args, **pair.before)
    second = ctx.replaced(first, **pair.after)
    found: Named = {n: t * pair.factors.get(n, 1) for n, t in ctx.call(second).items()}
    expected = ctx.call(first)
    if pair.exact:
        require_same_bits(found, expected, ctx.part.replace("_", " "))
        return None
    return ctx.judge({n: t for n, t in found.items() if expected[n].numel()}, first, ctx.part)
