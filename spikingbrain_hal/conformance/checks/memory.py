"""Promises about memory: what is read, what is written, and that neither threads nor strides show in a result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..verdict.judge import Judgement, require_same_bits
from ..verdict.truth import Named, each
from . import Context, check

THREADS = (1, 2, 3)
BY_CONTENT = ("offsets", "lengths", "slots")
MOST_CALLS = 500
PATIENCE = 0.5  # seconds of computing; a slow kernel is repeated less often
LAYOUTS = ("transposed", "sliced", "stepped", "expanded")


@check(
    "outputs are fully written, whatever they and the workspace held; nothing beside them is touched",
    level=3,
    applies=lambda s, c: True,
    every_dtype=True,
    quick=2,
)
def poisoned(ctx: Context) -> Judgement:
    args = ctx.args()
    hostile = ctx.target.launch(ctx.spec, args)
    clean = ctx.target.launch(ctx.spec, args, fill=Tensor.zero_)
    require_same_bits(hostile, clean, "poisoned against cleared memory")
    if ctx.target.kernels[ctx.spec.name].run is not None:
        require_same_bits(ctx.target.launch(ctx.spec, args, at_once=True), clean, "run at once against launched")
    return ctx.judge(hostile)


@check("results are bitwise the same for any number of threads", level=3, every_dtype=True, quick=2)
def threads(ctx: Context) -> None:
    args = ctx.args()
    alone = ctx.target.launch(ctx.spec, args, threads=THREADS[0])
    for count in THREADS[1:]:
        found = ctx.target.launch(ctx.spec, args, threads=count)
        require_same_bits(found, alone, f"{count} threads against 1")


@check("the same call gives the same bits again and again, as races show once in many calls", level=3, every_dtype=True)
def repeated(ctx: Context) -> None:
    args = ctx.args()
    first, started = ctx.call(args), time.process_time()
    for count in range(2, MOST_CALLS + 1):
        require_same_bits(ctx.call(args), first, f"call {count}")
        if time.process_time() - started > PATIENCE:
            break


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


_LAY_OUT = {"": lambda t: t, "transposed": _transposed, "sliced": _sliced, "stepped": _stepped, "expanded": _expanded}


def laid_out(ctx: Context, args: Sequence[Any]) -> list[Any]:
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


def call_in_place(ctx: Context, args: Sequence[Any]) -> Named:
    """Runs the operator on exactly these tensors, whose strides a copy would lose."""
    with ctx.target.honest(ctx.spec, args):
        results = ctx.spec.raw(*args)
    named = zip(ctx.spec.outputs, results if isinstance(results, tuple) else (results,), strict=True)
    return dict(named) | {n: ctx.spec.bind(args)[n].contiguous() for n in ctx.spec.mutates}


@check(
    "inputs of any stride give the bits that contiguous ones give",
    level=3,
    every_dtype=True,
    quick=1,
    full=3,
    parts=lambda spec, case: LAYOUTS,
)
def strides(ctx: Context) -> None:
    args = laid_out(ctx, ctx.args())
    plain = each(args, lambda t: t.contiguous().clone())
    require_same_bits(call_in_place(ctx, args), ctx.call(plain), f"{ctx.part} inputs")
