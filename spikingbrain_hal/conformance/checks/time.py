"""Promises along time: a state that can be handed over anywhere, and a future that cannot be seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ..verdict.judge import Judgement, every, require_same_bits
from ..verdict.truth import Named
from . import Context, axes_of, check, has_elements, slice_axis

CHUNKS = (1, 5, 16, 64)


def _steps(spec: OpSpec, case: Case) -> int:
    """How many steps a case runs, 0 where it is not one plain sequence a row."""
    if spec.time is None or not has_elements(spec, case) or any(spec.inputs[n].packs for n in case.given):
        return 0
    return int(case.sizes[spec.time.axis])


def _hands_over(spec: OpSpec, case: Case) -> bool:
    return _steps(spec, case) > 1 and bool(spec.time and spec.time.state_out)


def _chunked(spec: OpSpec, case: Case) -> bool:
    """A recurrence that hands its state over, or a step that sees no more than the keys before it."""
    if spec.time is None or _steps(spec, case) < 2:
        return False
    return bool(spec.time.state_out) or (bool(spec.time.keys) and _is_causal(spec, case) and not _exempt(spec, case))


def _attribute(spec: OpSpec, case: Case, name: str) -> Any:
    return case.attrs.get(name, spec.attributes[name].default)


def _is_causal(spec: OpSpec, case: Case) -> bool:
    assert spec.time is not None
    return not spec.time.causal or bool(_attribute(spec, case, spec.time.causal))


def _exempt(spec: OpSpec, case: Case) -> int:
    assert spec.time is not None
    return int(_attribute(spec, case, spec.time.exempt)) if spec.time.exempt else 0


def _hides_future(spec: OpSpec, case: Case) -> bool:
    return _steps(spec, case) > 1 and _is_causal(spec, case)


def _args_with_state(ctx: Context) -> list[Any]:
    """The case's arguments, with the state returned whatever the case asks for."""
    assert ctx.spec.time is not None
    state = ctx.spec.outputs.get(ctx.spec.time.state_out)
    switch = state.when if state else None
    return ctx.replaced(ctx.args(), **({switch: True} if switch else {}))


def _run_in_pieces(ctx: Context, args: Sequence[Any], cuts: Sequence[int]) -> Named:
    """Runs [0, c1), [c1, c2), ...: a recurrence hands its state on, the rest sees all earlier keys again."""
    time = ctx.spec.time
    assert time is not None
    steps = int(ctx.case.sizes[time.axis])
    ahead = int(ctx.case.sizes[time.keys]) - steps if time.keys else 0
    state, pieces = None, []
    for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
        part = slice_axis(ctx.spec, args, time.axis, start, stop)
        if time.keys:
            part = slice_axis(ctx.spec, part, time.keys, 0, max(0, stop + ahead))
        if state is not None:
            part = ctx.replaced(part, **{time.state_in: state})
        pieces.append(ctx.call(part))
        state = pieces[-1].get(time.state_out)
    return _join(ctx.spec, pieces, time.axis)


def _join(spec: OpSpec, pieces: Sequence[Named], axis: str) -> Named:
    joined = {}
    for name, last in pieces[-1].items():
        absent = last.dim() == 1 and last.numel() == 0
        axes = [] if absent else axes_of(spec, name, last)
        joined[name] = torch.cat([p[name] for p in pieces], axes.index(axis)) if axis in axes else last
    return joined


@check(
    "a run cut in two at any step, the state handed over, is the whole run",
    level=3,
    applies=_hands_over,
    every_dtype=True,
)
def split(ctx: Context) -> Judgement:
    return _judge_cuts(ctx, [[cut] for cut in range(1, _steps(ctx.spec, ctx.case))])


def _judge_cuts(ctx: Context, cuts: Sequence[Sequence[int]]) -> Judgement:
    args = _args_with_state(ctx)
    return every(partial(_judge_cut, ctx, args, at) for at in cuts)


def _judge_cut(ctx: Context, args: Sequence[Any], cuts: Sequence[int]) -> Judgement:
    return ctx.judge(_run_in_pieces(ctx, args, cuts), args, "with state")


@check("results do not depend on how a sequence is cut into chunks", level=3, applies=_chunked, every_dtype=True)
def chunks(ctx: Context) -> Judgement:
    steps = _steps(ctx.spec, ctx.case)
    return _judge_cuts(ctx, [range(size, steps, size) for size in CHUNKS if size < steps])


def _other_future(ctx: Context, args: Sequence[Any], axis: str, start: int) -> list[Any]:
    """The arguments with other values from ``start`` on along the axis that is looked back along."""
    changed = []
    for name, value in zip(ctx.spec.arguments, args, strict=True):
        if isinstance(value, Tensor) and axis in axes_of(ctx.spec, name, value):
            at = axes_of(ctx.spec, name, value).index(axis)
            value = value.clone()
            rest = value.narrow(at, start, value.shape[at] - start)
            rest.copy_(rest.flip(at) * 3 - 1 if ctx.spec.inputs[name].fill != "log_decay" else rest - 1)
        changed.append(value)
    return changed


def _past(ctx: Context, outputs: Named, steps: int) -> Named:
    assert ctx.spec.time is not None
    found = {}
    for name, tensor in outputs.items():
        axes = axes_of(ctx.spec, name, tensor) if tensor.numel() else []
        if ctx.spec.time.axis in axes:
            found[name] = tensor.narrow(axes.index(ctx.spec.time.axis), 0, steps)
    return found


@check("changing the future does not change a bit of the past", level=3, applies=_hides_future, every_dtype=True)
def causality(ctx: Context) -> None:
    time, args = ctx.spec.time, ctx.args()
    assert time is not None
    queries, keys = ctx.case.sizes[time.axis], ctx.case.sizes[time.keys or time.axis]
    whole = ctx.call(args)
    for start in sorted({keys // 3, keys // 2, keys - 1} - {0}):
        past = start + queries - keys
        if start < _exempt(ctx.spec, ctx.case) or past <= 0:
            continue
        changed = ctx.call(_other_future(ctx, args, time.keys or time.axis, start))
        require_same_bits(_past(ctx, changed, past), _past(ctx, whole, past), f"inputs changed from step {start} on")
