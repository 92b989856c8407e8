"""Level 1: memory however it came about, streams, errors that leave a device usable, and calls from many threads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedOp
from ..run.target import Opened
from ..verdict.judge import Mismatch, require_same_bits
from ..verdict.truth import Named, each
from . import BackendContext, backend_check, served

THREADS, CALLS = 4, 3
SLEEP_CYCLES = 200_000_000


def _no_streams(opened: Opened) -> str:
    return "host memory has no streams, events or copies" if opened.on_host else ""


# ---- memory


def _from_numpy(t: Tensor) -> Tensor:
    return torch.from_numpy(t.contiguous().view(-1).view(torch.uint8).numpy().copy()).view(t.dtype).view(t.shape)


def _shared(t: Tensor) -> Tensor:
    shared: Tensor = t.clone().share_memory_()
    return shared


def _mapped(t: Tensor) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tensor")
        path.write_bytes(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        memory = torch.from_file(str(path), shared=True, size=t.nbytes, dtype=torch.uint8)
    return memory.view(t.dtype).view(t.shape)


def _behind_one(t: Tensor) -> Tensor:
    """One element behind the start of an allocation: aligned for that element and nothing wider."""
    return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)


def _copied_in(t: Tensor) -> Tensor:
    """Through pinned host memory, by a copy that nobody waits for."""
    return t.cpu().pin_memory().to(t.device, non_blocking=True)


@backend_check("inputs may lie in any memory that torch can have them in", level=1, parts=served)
def memory(ctx: BackendContext) -> None:
    args = ctx.args()
    expected = ctx.call(args)
    places = (_from_numpy, _shared, _mapped) if ctx.target.device == "cpu" else (_copied_in,)
    for place in (*places, _behind_one):
        placed = each(args, lambda t, place=place: place(t) if t.numel() else t)  # type: ignore[misc]
        require_same_bits(ctx.call(placed), expected, f"inputs{place.__name__.replace('_', ' ')}")


# ---- streams


def _launch(ctx: BackendContext, args: Sequence[Any]) -> Named:
    """Plans and launches on the current stream, without the look at contents that waits for the device."""
    spec = ctx.spec
    launch, outputs = ctx.target.prepare(spec, args)
    launch()
    return dict(zip(spec.outputs, outputs, strict=True)) | {n: spec.bind(args)[n] for n in spec.mutates}


def _late(ctx: BackendContext, args: Sequence[Any]) -> Named:
    """Launches behind a pause and the copies that bring the inputs, all on the current stream."""
    staged = each(args, torch.zeros_like)
    torch.cuda._sleep(SLEEP_CYCLES)
    for given, late in zip(args, staged, strict=True):
        if isinstance(given, Tensor):
            late.copy_(given)
    return _launch(ctx, staged)


@backend_check(
    "a launch waits for what its stream had to do before it, and its caller for nothing",
    level=1,
    parts=served,
    absent=_no_streams,
)
def stream_order(ctx: BackendContext) -> None:
    args = each(ctx.args(), Tensor.contiguous)
    expected = ctx.call(args)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        found = _late(ctx, args)
        if side.query():
            raise Mismatch("the launch waited for the device")
    torch.cuda.synchronize()
    require_same_bits(found, expected, "on a stream of its own")


@backend_check(
    "an event behind a launch is done after it: who waits for the event has the results",
    level=1,
    parts=served,
    absent=_no_streams,
)
def events(ctx: BackendContext) -> None:
    args = each(ctx.args(), Tensor.contiguous)
    expected = ctx.call(args)
    first, second, event = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(first):
        found = _late(ctx, args)
        event.record()
    if event.query():
        raise Mismatch("the event was done before the launch can have been")
    with torch.cuda.stream(second):
        second.wait_event(event)
        copies = {name: t.clone() for name, t in found.items()}
    second.synchronize()
    if not event.query():
        raise Mismatch("a stream that waits for the event went on before it was done")
    require_same_bits(copies, expected, "behind an event")
    torch.cuda.synchronize()


# ---- errors


@backend_check("a refused call raises what is promised and leaves the next one as it was", level=1, parts=served)
def errors(ctx: BackendContext) -> None:
    args = ctx.args()
    expected = ctx.call(args)
    first = next(iter(ctx.spec.inputs))
    given = ctx.spec.bind(args)[first]
    wrongs = {"absent": None, "of bool": given.bool(), "of complex numbers": given.to(torch.complex64)}
    for what, wrong in wrongs.items():
        try:
            ctx.spec.raw(*(ctx.spec.bind(args) | {first: wrong}).values())
        except (TypeError, ValueError, UnsupportedOp):
            pass
        except Exception as error:
            raise Mismatch(f"{first} {what}: raises {type(error).__name__}: {error}") from error
        else:
            raise Mismatch(f"{first} {what}: accepted")
        require_same_bits(ctx.call(args), expected, f"the call after {first} {what}")


# ---- threads


@backend_check("calls from several threads at once give what they give one after another", level=1, parts=served)
def concurrency(ctx: BackendContext) -> None:
    inputs = [ctx.args(seed) for seed in range(THREADS)]
    expected = [ctx.call(args) for args in inputs]

    def repeat(i: int) -> list[Named]:
        stream = torch.cuda.Stream() if ctx.target.device != "cpu" else None
        with torch.cuda.stream(stream) if stream else nullcontext():
            found = [ctx.call(inputs[i]) for _ in range(CALLS)]
            if stream:
                stream.synchronize()
            return found

    if ctx.target.device != "cpu":
        torch.cuda.synchronize()
    with ThreadPoolExecutor(THREADS) as pool:
        for i, results in enumerate(pool.map(repeat, range(THREADS))):
            for found in results:
                require_same_bits(found, expected[i], f"thread {i} of {THREADS}")
