"""Results against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...declare.arguments import converted
from ...declare.spec import Case, OpSpec
from ...errors import UnsupportedOp
from ..verdict.judge import Judgement, Mismatch
from . import Context, check, has_elements, is_legal


@check(
    "results are within tolerance of the float64 oracle",
    level=2,
    applies=lambda s, c: True,
    every_dtype=True,
    quick=None,
)
def values(ctx: Context) -> Judgement:
    return ctx.judge(ctx.call(ctx.args()))


def _has_alternatives(spec: OpSpec, case: Case) -> bool:
    present = [d for n, d in spec.inputs.items() if n not in spec.optional or n in case.given]
    gradients = [n for n in spec.inputs if n.startswith("grad_")]
    more = any("|" in d.axes or "|" in d.dtype or d.dtype in ("float", "index") for d in present[1:])
    return has_elements(spec, case) and (more or len(gradients) > 1)


@check(
    "the other axes and dtypes that inputs accept, and absent gradients, are within tolerance too",
    level=2,
    applies=_has_alternatives,
    every_dtype=True,
    quick=2,
)
def alternatives(ctx: Context) -> Judgement:
    args = ctx.args(alternative=True)
    return ctx.judge(ctx.call(args), args, "alternative")


def _takes_wide(spec: OpSpec, case: Case) -> bool:
    return has_elements(spec, case) and any(n in case.given or n not in spec.optional for n in converted(spec))


@check(
    "inputs that may have any float dtype may be float64, and their gradients are then",
    level=3,
    applies=_takes_wide,
    full=2,
)
def wide_inputs(ctx: Context) -> Judgement:
    args, wide = ctx.args(), converted(ctx.spec)
    doubled = [a.double() if n in wide and a is not None else a for n, a in ctx.spec.bind(args).items()]
    ctx.call(args)  # who does not serve float32 need not serve these
    try:
        outputs = ctx.call(doubled)
    except UnsupportedOp as error:
        raise Mismatch(f"float64 in {' and '.join(wide)} is refused: {error}") from error
    expected = dict(zip(ctx.spec.outputs, ctx.spec.allocate(*doubled), strict=True))
    for name, like in expected.items():
        if outputs[name].dtype != like.dtype:
            raise Mismatch(f"{name} is {outputs[name].dtype}, expected {like.dtype}")
    usual = dict(zip(ctx.spec.outputs, ctx.spec.allocate(*args), strict=True))
    return ctx.judge({n: t.to(usual[n].dtype) if n in usual else t for n, t in outputs.items()})


def _emptied(case: Case, axis: str) -> Case:
    size = case.sizes[axis]
    empty = (0, *size[1:]) if isinstance(size, tuple) else 0
    return replace(case, sizes={**case.sizes, axis: empty}, ragged=(0,) * len(case.ragged))


def _axes_that_may_be_empty(spec: OpSpec, case: Case) -> tuple[str, ...]:
    """Those that the declaration accepts at size zero."""
    return tuple(axis for axis in case.sizes if is_legal(spec, _emptied(case, axis)))


@check("an axis of size zero is served", level=3, full=2, parts=_axes_that_may_be_empty)
def zero_size(ctx: Context) -> Judgement:
    small = replace(ctx, case=_emptied(ctx.case, ctx.part))
    return small.judge(small.call(small.args()))


@check("inference mode changes nothing", level=4)
def inference_mode(ctx: Context) -> Judgement:
    with torch.inference_mode():
        args = ctx.args()
        return ctx.judge({n: t.clone() for n, t in ctx.call(args).items()})
