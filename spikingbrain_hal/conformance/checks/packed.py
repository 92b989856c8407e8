"""Promises about packed sequences, padding and resets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...declare.inputs import poison
from ...declare.spec import Case, OpSpec, Time
from ..verdict.judge import Judgement, Mismatch, require_same_bits
from ..verdict.truth import Named
from . import Context, axes_of, check, has_elements, slice_axis

RESETS = ("-inf", "-1e4", "-1e30")


def _packs(spec: OpSpec, case: Case, fill: str = "") -> list[str]:
    """The given inputs that divide an axis, of one kind or all."""
    return [n for n in case.given if spec.inputs[n].packs and fill in ("", spec.inputs[n].fill)]


def _poison_padding(ctx: Context, args: Sequence[Any]) -> list[Any]:
    a = ctx.spec.bind(args)
    for packing in _packs(ctx.spec, ctx.case):
        axis = ctx.spec.inputs[packing].packs
        ends = a[packing][-1:] if ctx.spec.inputs[packing].fill == "offsets" else a[packing]
        for name, value in a.items():
            if isinstance(value, Tensor) and axis in axes_of(ctx.spec, name, value):
                at = axes_of(ctx.spec, name, value).index(axis)
                for row, end in zip(value, ends.tolist(), strict=True):
                    poison(row.narrow(at - 1, end, row.shape[at - 1] - end))
    return list(a.values())


@check(
    "what lies behind the last sequence or past a row's length is never read",
    level=3,
    applies=lambda spec, case: has_elements(spec, case) and bool(_packs(spec, case)),
    every_dtype=True,
    quick=2,
)
def padding(ctx: Context) -> None:
    clean = ctx.call(ctx.args())
    require_same_bits(ctx.call(_poison_padding(ctx, ctx.args())), clean, "NaN in the padding")


# ---- packed against separate


def _spans(spec: OpSpec, a: Mapping[str, Any], n: int) -> dict[str, tuple[int, int]]:
    """Where sequence n lies along each packed axis, and along N."""
    found = {"N": (n, n + 1)}
    for name, declared in spec.inputs.items():
        if declared.fill == "offsets" and a[name] is not None:
            found[declared.packs] = int(a[name][n]), int(a[name][n + 1])
    return found


def _each_sequence(ctx: Context, args: Sequence[Any]) -> Iterator[tuple[dict[str, tuple[int, int]], list[Any]]]:
    a = ctx.spec.bind(args)
    alone = dict.fromkeys(_packs(ctx.spec, ctx.case, "offsets"))
    for n in range(len(ctx.case.ragged)):
        spans = _spans(ctx.spec, a, n)
        part = list(args)
        for axis, (start, stop) in spans.items():
            part = slice_axis(ctx.spec, part, axis, start, stop)
        yield spans, ctx.replaced(part, **alone)


def _write(spec: OpSpec, whole: Named, part: Named, spans: Mapping[str, tuple[int, int]]) -> None:
    for name, value in part.items():
        if value.numel():
            place = [slice(*spans.get(axis, (None, None))) for axis in axes_of(spec, name, value)]
            whole[name][tuple(place)] = value


@check(
    "packed sequences give what each gives alone",
    level=3,
    applies=lambda spec, case: has_elements(spec, case) and bool(_packs(spec, case, "offsets")),
    every_dtype=True,
)
def packed(ctx: Context) -> Judgement:
    args = ctx.args()
    together = ctx.call(args)
    alone = {name: t.clone() for name, t in together.items()}
    for spans, part in _each_sequence(ctx, args):
        _write(ctx.spec, alone, ctx.call(part), spans)
    return ctx.judge(together).add(ctx.judge(alone))


# ---- resets


def _time(spec: OpSpec) -> Time | None:
    return (spec.forward or spec).time


def _gates(spec: OpSpec) -> list[str]:
    return [n for n, d in spec.inputs.items() if d.fill == "log_decay"]


def _boundaries(ctx: Context) -> list[int]:
    time = _time(ctx.spec)
    steps = ctx.case.sizes[time.axis] if time else 0
    return sorted({steps // 3, 2 * steps // 3} - {0})


def _reset(ctx: Context) -> list[Any]:
    """The case's arguments with gates that forget everything at two boundaries, or everywhere without time."""
    a, time = ctx.spec.bind(ctx.args()), _time(ctx.spec)
    for name in _gates(ctx.spec):
        places = a[name].unbind(axes_of(ctx.spec, name, a[name]).index(time.axis)) if time else [a[name]]
        for at in _boundaries(ctx) if time else [0]:
            places[at].copy_(torch.tensor(float(ctx.part)))  # past the range of the dtype it becomes -inf
    return list(a.values())


def _resettable(spec: OpSpec, case: Case) -> bool:
    time = _time(spec)
    long_enough = time is None or case.sizes[time.axis] > 2
    return has_elements(spec, case) and bool(_gates(spec)) and not _packs(spec, case) and long_enough


@check(
    "a gate of -inf, -1e4 or -1e30 forgets exactly, and gradients through it are finite",
    level=3,
    applies=_resettable,
    every_dtype=True,
    quick=1,
    full=3,
    parts=lambda spec, case: RESETS,
)
def resets(ctx: Context) -> Judgement:
    args = _reset(ctx)
    outputs = ctx.call(args)
    for name, tensor in outputs.items():
        if not tensor.isfinite().all():
            raise Mismatch(f"{name} is not finite behind a reset")
    return ctx.judge(outputs, args, f"reset {ctx.part}")


@check(
    "a sequence reset at a boundary is two sequences",
    level=3,
    applies=lambda spec, case: _resettable(spec, case) and bool(spec.time and spec.time.state_in),
    every_dtype=True,
    full=3,
    parts=lambda spec, case: RESETS,
)
def resets_separate(ctx: Context) -> Judgement:
    time, args = ctx.spec.time, _reset(ctx)
    assert time is not None
    whole = {name: t.clone() for name, t in ctx.call(args).items()}
    cuts = [0, *_boundaries(ctx), ctx.case.sizes[time.axis]]
    for start, stop in pairwise(cuts):
        part = slice_axis(ctx.spec, args, time.axis, start, stop)
        if start:
            part = ctx.replaced(part, **{time.state_in: None})
        _write(ctx.spec, whole, ctx.call(part), {time.axis: (start, stop)})
    return ctx.judge(whole, args, f"reset {ctx.part}")
