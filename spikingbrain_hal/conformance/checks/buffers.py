"""Promises about where tensors lie: nothing beside them is read, and 32 bits do not limit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...declare.inputs import io_dtypes
from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..run.guard import SIDES, GuardedLaunch, Mapping, memory_beside
from ..run.target import NotRun
from ..verdict.judge import Mismatch, require_same_bits
from ..verdict.truth import each
from . import Context, axes_of, check
from .memory import call_in_place

LIMIT = 1 << 31
SHARE = 0.8  # of the free memory that a case may take


# ---- what lies beside a buffer


def _in_rows(ctx: Context, tensor: Tensor) -> Tensor:
    """A copy whose rows have gaps between them and whose last row ends at the guard."""
    strides, step = [1] * tensor.dim(), 1
    for i in reversed(range(tensor.dim() - 1)):
        step = step * max(tensor.shape[i + 1], 1) + 3
        strides[i] = step
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True)) if tensor.numel() else 0
    memory = memory_beside(ctx.target.device, extent, tensor.dtype, "after")
    return memory.as_strided(tensor.shape, strides).copy_(tensor) if extent else tensor


@check(
    "nothing beside an input, an output or the workspace is read or written: on the host the pages there are closed",
    level=3,
    quick=2,
    full=8,
    every_dtype=True,
    parts=lambda spec, case: (*SIDES, "rows"),
)
def guard_pages(ctx: Context) -> None:
    args = ctx.args()
    plain = ctx.call(args)
    if ctx.part == "rows":
        rows = each(args, partial(_in_rows, ctx))
        return require_same_bits(call_in_place(ctx, rows), plain, "rows that end at a guard")
    launch = GuardedLaunch(ctx.target, ctx.spec, args, ctx.part)
    launch.run()
    launch.check_memory()
    require_same_bits(launch.results(), plain, f"guards {ctx.part} every buffer")


# ---- offsets past 2^31 elements


def _outermost(shape: Sequence[int]) -> int:
    """The first axis that has two places; -1 if none has."""
    return next((i for i, n in enumerate(shape) if n > 1), -1)


def _with_two_places(spec: OpSpec, case: Case) -> tuple[str, ...]:
    sizes = {"N": len(case.ragged) or case.sizes.get("B", 1), **case.sizes, "N+1": len(case.ragged) + 1}
    given = [n for n in spec.inputs if n not in spec.optional or n in case.given]
    shapes = {n: [sizes.get(axis, 1) for axis in spec.inputs[n].axes.split("|")[0].split()] for n in given}
    flat = {n: [m for size in s for m in (size if isinstance(size, tuple) else (size,))] for n, s in shapes.items()}
    return tuple(n for n, shape in flat.items() if _outermost(shape) >= 0)


def _reserve(device: str, count: int, dtype: torch.dtype) -> Tensor:
    """Elements that nothing has touched: of host memory they cost only what will be."""
    if device != "cpu":
        _require_memory(device, count * dtype.itemsize)
        return torch.empty(count, dtype=dtype, device=device)
    try:
        return Mapping(count * dtype.itemsize).bytes[: count * dtype.itemsize].view(dtype)
    except MemoryError as error:
        raise NotRun(str(error)) from error


def _require_real_device(ctx: Context) -> None:
    if ctx.target.backend.simulated:
        raise NotRun("a simulated device touches all memory that a tensor spans, element by element")


def _require_memory(device: str, size: int) -> None:
    free = torch.cuda.mem_get_info()[0] if device != "cpu" else _free_host_memory()
    if size > SHARE * free:
        raise NotRun(f"it takes {size / 1e9:.1f} GB, of the {free / 1e9:.1f} GB that are free at most {SHARE:.0%}")


def _free_host_memory() -> int:
    with open("/proc/meminfo", encoding="utf-8") as file:
        known = dict(line.split(":", 1) for line in file)
    return int(known["MemAvailable"].split()[0]) * 1024


@check(
    "an input whose elements lie more than 2^31 apart gives the same bits",
    level=3,
    quick=0,
    full=3,
    parts=_with_two_places,
)
def far_apart(ctx: Context) -> None:
    _require_real_device(ctx)
    args = ctx.args()
    plain = ctx.call(args)
    tensor = ctx.spec.bind(args)[ctx.part]
    axis = _outermost(tensor.shape)
    strides = list(torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format).stride())
    strides[axis] += -(-LIMIT // (tensor.shape[axis] - 1))
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    far = _reserve(ctx.target.device, extent, tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)
    require_same_bits(call_in_place(ctx, ctx.replaced(args, **{ctx.part: far})), plain, f"{ctx.part} far apart")


# ---- tensors of more than 2^31 elements


def _repeated_along(spec: OpSpec, name: str, tensor: Tensor, times: int) -> Tensor:
    axis = axes_of(spec, name, tensor).index("...")
    return tensor.repeat([times if i == axis else 1 for i in range(tensor.dim())])


def _first_difference(spec: OpSpec, name: str, found: Tensor, block: Tensor) -> int | None:
    """The first repetition of a block of results that is not the block."""
    if not block.numel():
        return None
    axis = axes_of(spec, name, block).index("...")
    width = block.shape[axis]
    for i in range(found.shape[axis] // width):
        if not torch.equal(found.narrow(axis, i * width, width), block):
            return i
    return None


def _is_first(spec: OpSpec, case: Case) -> bool:
    return properties_of(spec).huge is not None and case is spec.cases[0]


def _narrowest(spec: OpSpec, case: Case) -> tuple[str, ...]:
    return (str(min(io_dtypes(spec), key=lambda d: d.itemsize)).removeprefix("torch."),)


@check("tensors of more than 2^31 elements are served", level=3, applies=_is_first, quick=0, full=1, parts=_narrowest)
def huge(ctx: Context) -> None:
    _require_real_device(ctx)
    case = properties_of(ctx.spec).huge
    assert case is not None
    small = replace(ctx, case=case, dtype=getattr(torch, ctx.part))
    args = each(small.args(), Tensor.nan_to_num)
    results = {n: t for n, t in ctx.call(args).items() if t.numel()}
    tensors = [*(a for a in args if isinstance(a, Tensor)), *results.values()]
    times = LIMIT // max(t.numel() for t in tensors) + 2
    _require_memory(ctx.target.device, times * sum(t.numel() * t.itemsize for t in tensors))
    whole = [
        _repeated_along(ctx.spec, n, a, times) if isinstance(a, Tensor) else a
        for n, a in zip(ctx.spec.arguments, args, strict=True)
    ]
    found = call_in_place(ctx, whole)
    for name, block in results.items():
        different = _first_difference(ctx.spec, name, found[name], block)
        if different is not None:
            raise Mismatch(f"{name} differs in repetition {different} of {times} of a block")
