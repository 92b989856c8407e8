"""Wrong calls: refused with the right error, naming operator and argument, before anything is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ...errors import StrideError, UnsupportedOp
from ..operators import properties_of
from ..run.target import Launch
from ..verdict.judge import Mismatch
from . import Context, check

REFUSALS = (ValueError, TypeError, UnsupportedOp)
BAD_NUMBERS: Mapping[str, Sequence[Any]] = {
    "float": (math.nan, -1.0, 0.0),
    "int": (-1, 0, 1 << 40),
    "str": ("no such name",),
    "bool": (),
}


@dataclass(frozen=True)
class Wrong:
    """A call that must be refused.

    Attributes:
        what: What is wrong with it, for the report.
        args: Its arguments.
        error: What must be raised, and by the declaration if that can tell.
    """

    what: str
    args: list[Any]
    error: type[Exception]


def _wrong_tensors(ctx: Context, name: str, args: Sequence[Any]) -> Iterator[Wrong]:
    tensor = ctx.spec.bind(args)[name]
    if name not in ctx.spec.optional:
        yield Wrong("absent", ctx.replaced(args, **{name: None}), TypeError)
    if tensor is None:
        return
    accepted = ctx.spec.accepted_dtypes(name, ctx.spec.bind(args))
    for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.bool):
        if dtype not in accepted:
            yield Wrong(str(dtype), ctx.replaced(args, **{name: tensor.to(dtype)}), TypeError)
    yield Wrong("one axis more", ctx.replaced(args, **{name: tensor[None]}), ValueError)
    if tensor.dim():
        yield Wrong("one axis less", ctx.replaced(args, **{name: tensor.select(-1, 0)}), ValueError)
    for axis in range(tensor.dim()):
        longer = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
        yield Wrong(f"axis {axis} too long", ctx.replaced(args, **{name: longer}), ValueError)
    yield Wrong("another device", ctx.replaced(args, **{name: tensor.to("meta")}), ValueError)


def _wrong_numbers(ctx: Context, name: str, args: Sequence[Any]) -> Iterator[Wrong]:
    for value in BAD_NUMBERS[ctx.spec.attributes[name].annotation]:
        yield Wrong(repr(value), ctx.replaced(args, **{name: value}), ValueError)


def _declared(spec: OpSpec, wrong: Wrong) -> bool:
    """Whether the declaration refuses the call; a longer free axis, for one, is no mistake."""
    try:
        spec.check(wrong.args)
    except (ValueError, TypeError, ZeroDivisionError):
        return True
    return False


def _bad_contents(ctx: Context, name: str, args: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """Values that only a look into memory shows to be wrong."""
    a = ctx.spec.bind(args)
    tensor, fill = a[name], ctx.spec.inputs[name].fill
    if tensor is None or not tensor.numel():
        return
    limit = ctx.case.sizes.get(ctx.spec.inputs[name].packs, 0)
    if fill == "offsets":
        yield "not 0 first", tensor + 1
        yield "a decrease", torch.cat([tensor[:1], tensor[1:].flip(0)])
        yield "past the end", torch.cat([tensor[:-1], torch.full_like(tensor[-1:], limit + 1)])
    elif fill == "lengths":
        yield "negative", tensor - limit - 1
        yield "past the end", tensor + limit + 1
    own = properties_of(ctx.spec.forward or ctx.spec).wrong_contents.get(name)
    if own is not None:
        yield from own(a)


def _mentions(message: str, spec: OpSpec, name: str) -> bool:
    """Whether a message names the operator, and the argument or one of its axes."""
    axes = spec.inputs[name].axes.replace("|", " ").split() if name in spec.inputs else []
    words = [name, *axes]
    return spec.name in message and any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", message) for w in words)


def _expect_refused(ctx: Context, name: str, wrong: Wrong) -> None:
    try:
        ctx.spec.raw(*wrong.args)
    except wrong.error as error:
        if not _mentions(str(error), ctx.spec, name):
            raise Mismatch(f"{name}: {wrong.what}: the message doesn't say which argument: {error}") from error
    except Exception as error:
        kind = type(error).__name__
        raise Mismatch(f"{name}: {wrong.what}: raises {kind}, expected {wrong.error.__name__}: {error}") from error
    else:
        raise Mismatch(f"{name}: {wrong.what}: accepted, expected {wrong.error.__name__}")


def _expect_guarded(ctx: Context, name: str, wrong: Wrong, sound: Sequence[Any]) -> None:
    """The kernel itself must refuse, as its caller may have checked nothing, and leave alone what it writes."""
    launch = Launch(ctx.target, ctx.spec, sound)
    launch.allocate()
    workspace = torch.empty(1 << 20, dtype=torch.uint8, device=ctx.target.device)
    a = ctx.spec.bind(wrong.args)
    in_place = [t for n in ctx.spec.mutates if isinstance(t := a[n], Tensor) and not t.is_meta]
    before = [t.clone() for t in in_place]
    try:
        launch.kernel.launch(*wrong.args, *launch.outputs, workspace, 0, 1)
    except (*REFUSALS, StrideError, BufferError, RuntimeError):
        pass
    else:
        raise Mismatch(f"{name}: {wrong.what}: the kernel ran")
    if not launch.untouched() or not all(map(torch.equal, in_place, before)):
        raise Mismatch(f"{name}: {wrong.what}: outputs were written before the call was refused")
    launch.check_memory()


def _arguments(spec: OpSpec, case: Case) -> tuple[str, ...]:
    """What can be wrong: tensors that the case gives, and attributes."""
    given = [n for n in spec.inputs if n not in spec.optional or n in case.given or n.startswith("grad_")]
    return (*given, *(n for n, p in spec.attributes.items() if p.annotation != "bool"))


@check(
    "a wrong argument is refused by name, with the promised error, and nothing has been written",
    level=3,
    full=3,
    parts=_arguments,
)
def refuses(ctx: Context) -> None:
    name, args = ctx.part, ctx.args()
    ctx.call(args)  # who serves nothing refuses nothing
    make = _wrong_tensors if name in ctx.spec.inputs else _wrong_numbers
    wrongs = [w for w in make(ctx, name, args) if _declared(ctx.spec, w)]
    contents = _bad_contents(ctx, name, args) if name in ctx.spec.inputs else ()
    by_value = [Wrong(what, ctx.replaced(args, **{name: t}), ValueError) for what, t in contents]
    for wrong in wrongs + by_value:
        _expect_refused(ctx, name, wrong)
    for wrong in wrongs + (by_value if ctx.target.backend.checks_contents else []):
        _expect_guarded(ctx, name, wrong, args)
