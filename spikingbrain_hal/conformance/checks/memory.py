"""Promises about memory: what is read, what is written, and that neither threads nor strides show in a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..judge import Judgement, require_same_bits
from ..truth import Named
from . import Context, check

THREADS = (1, 2, 3)
BY_CONTENT = ("offsets", "lengths", "slots")
LAYOUTS = ("transposed", "sliced", "stepped", "expanded")


@check(
    "outputs are fully written, whatever they and the workspace held; nothing beside them is touched",
    applies=lambda s, c: True,
    every_dtype=True,
    quick=2,
)
def poisoned(ctx: Context) -> Judgement:
    args = ctx.args()
    hostile = ctx.target.launch(ctx.spec, args)
    clean = ctx.target.launch(ctx.spec, args, fill=Tensor.zero_)
    require_same_bits(hostile, clean, "poisoned against cleared memory")
    return ctx.judge(hostile)


@check("results are bitwise the same for any number of threads", every_dtype=True, quick=2)
def threads(ctx: Context) -> None:
    args = ctx.args()
    alone = ctx.target.launch(ctx.spec, args, threads=THREADS[0])
    for count in THREADS[1:]:
        found = ctx.target.launch(ctx.spec, args, threads=count)
        require_same_bits(found, alone, f"{count} threads against 1")


@check("the same call twice gives the same bits", every_dtype=True)
def repeated(ctx: Context) -> None:
    args = ctx.args()
    require_same_bits(ctx.call(args), ctx.call(args), "the second call")


def _transposed(t: Tensor) -> Tensor:
    order = list(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def _sliced(t: Tensor) -> Tensor:
    wide = torch.empty([n + 3 for n in t.shape], dtype=t.dtype, device=t.device)
    inside = wide[tuple(slice(2, 2 + n) for n in t.shape)]
    return inside.copy_(t)


def _stepped(t: Tensor) -> Tensor:
    wide = torch.empty([2 * n for n in t.shape[:1]] + list(t.shape[1:]), dtype=t.dtype, device=t.device)
    return wide[::2].copy_(t) if t.dim() else t


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() else t


_LAY_OUT = {"transposed": _transposed, "sliced": _sliced, "stepped": _stepped, "expanded": _expanded}


def _laid_out(ctx: Context, args: Sequence[Any]) -> list[Any]:
    """The same values under other strides; inputs written in place keep an innermost stride of 1."""
    changed = []
    for name, value in zip(ctx.spec.arguments, args, strict=True):
        layout = ctx.part
        if name in ctx.spec.mutates and layout in ("transposed", "expanded"):
            layout = "sliced"
        if isinstance(value, Tensor) and not (layout == "expanded" and ctx.spec.inputs[name].fill in BY_CONTENT):
            value = _LAY_OUT[layout](value)
        changed.append(value)
    return changed


def _in_place_results(ctx: Context, args: Sequence[Any]) -> Named:
    """Runs the operator on exactly these tensors, whose strides a copy would lose."""
    results = ctx.spec.raw(*args)
    named = zip(ctx.spec.outputs, results if isinstance(results, tuple) else (results,), strict=True)
    return dict(named) | {n: ctx.spec.bind(args)[n].contiguous() for n in ctx.spec.mutates}


@check(
    "inputs of any stride give the bits that contiguous ones give",
    every_dtype=True,
    quick=1,
    full=3,
    parts=lambda spec, case: LAYOUTS,
)
def strides(ctx: Context) -> None:
    args = _laid_out(ctx, ctx.args())
    plain = [a.contiguous().clone() if isinstance(a, Tensor) else a for a in args]
    require_same_bits(_in_place_results(ctx, args), ctx.call(plain), f"{ctx.part} inputs")
