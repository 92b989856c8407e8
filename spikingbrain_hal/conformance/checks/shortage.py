"""Level 1: what a backend does where there is no memory."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...declare.inputs import make_inputs
from ...declare.registry import OPERATORS
from ...declare.spec import OpSpec
from ..run.target import Opened
from ..verdict.judge import Mismatch, require_same_bits
from ..verdict.truth import each
from . import BackendContext, axes_of, backend_check, has_elements

HUGE_BYTES, MODEST_BYTES, SMALL_BYTES = 1 << 30, 1 << 17, 1 << 16
MOST_BLOCKS = 1 << 16


def _enlarged(spec: OpSpec, seed: int, device: str, least: int) -> list[Any] | None:
    """Legal arguments with at least so many bytes of outputs, and small inputs: the same numbers again and again."""
    axis = next((a for a in next(iter(spec.inputs.values())).axes.split() if a in ("B", "...")), None)
    for case in spec.cases:
        if axis is None or not has_elements(spec, case) or case.ragged or not case.sizes[axis]:
            continue
        args = make_inputs(spec, case, None, seed, device)
        size = sum(t.nbytes for t in spec.allocate(*each(args, lambda t: t.to("meta"))))
        count = ceil(least / size)
        huge = []
        for name, value in zip(spec.arguments, args, strict=True):
            if isinstance(value, Tensor) and axis in (axes := axes_of(spec, name, value)):
                at = axes.index(axis)
                repeated = value.narrow(at, 0, 1)
                value = repeated.expand(*value.shape[:at], count * value.shape[at], *value.shape[at + 1 :])
            huge.append(value)
        try:
            spec.check(each(huge, lambda t: t.to("meta")))
        except (ValueError, TypeError):
            continue
        return huge
    return None


@contextmanager
def _little_memory() -> Iterator[None]:
    """For as long as this lasts, the process can have no more address space, and what it had free is taken."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    taken, count = (ctypes.c_void_p * MOST_BLOCKS)(), 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held, before[1]))
    try:
        while count < MOST_BLOCKS and (block := libc.malloc(SMALL_BYTES)):
            taken[count], count = block, count + 1
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        for block in taken[:count]:
            libc.free(block)


def _can_grow(opened: Opened) -> Sequence[str]:
    """The operators that can be asked for huge outputs with small inputs; of what is written in place, none repeats."""
    forward = [op for op in opened.served if OPERATORS[op].forward is None and not OPERATORS[op].mutates]
    return [op for op in forward if _enlarged(OPERATORS[op], 0, "cpu", HUGE_BYTES) is not None]


def _out_of_memory(run: Callable[[], Any]) -> str:
    """The message of the error that says so, empty if there is none."""
    try:
        run()
    except (torch.OutOfMemoryError, MemoryError) as error:
        return str(error) or type(error).__name__
    except RuntimeError as error:  # what torch raises for host memory
        if "memory" in str(error):
            return str(error)
        raise
    return ""


def _no_shortage(opened: Opened) -> str:
    """Why memory cannot be made short here, if it cannot."""
    if opened.on_host and hasattr(ctypes.CDLL(None), "__asan_init"):
        return "an address sanitizer ends a process whose memory is short"
    return ""


@backend_check(
    "outputs that no memory can hold are an error that says so, and the next call works",
    level=1,
    parts=_can_grow,
    absent=_no_shortage,
)
def out_of_memory(ctx: BackendContext) -> None:
    args = ctx.args()
    expected, on_host = ctx.call(args), ctx.target.device == "cpu"
    least = HUGE_BYTES if on_host else 2 * torch.cuda.get_device_properties(ctx.target.device).total_memory
    huge = _enlarged(ctx.spec, ctx.seed, ctx.target.device, least)
    assert huge is not None
    with _little_memory() if on_host else nullcontext():
        refused = _out_of_memory(lambda: ctx.spec.raw(*huge))
    if not refused:
        raise Mismatch("outputs larger than the memory there is were computed")
    require_same_bits(ctx.call(args), expected, f"the call after {refused.splitlines()[0]!r}")


@backend_check(
    "a launch that can have no memory of its own is right, or an error that says so, and the next call works",
    level=1,
    parts=_can_grow,
    absent=lambda opened: _no_shortage(opened) if opened.on_host else "what a launch allocates on a device is not seen",
)
def launch_without_memory(ctx: BackendContext) -> None:
    spec = ctx.spec
    args = each(_enlarged(spec, ctx.seed, "cpu", MODEST_BYTES) or [], Tensor.contiguous)
    expected = ctx.call(args)
    launch, outputs = ctx.target.prepare(spec, args)
    with _little_memory():
        refused = _out_of_memory(launch)
    if not refused:
        require_same_bits(
            dict(zip(spec.outputs, outputs, strict=True)), {n: expected[n] for n in spec.outputs}, "without memory"
        )
    require_same_bits(ctx.call(args), expected, "the call after it")
