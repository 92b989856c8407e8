"""Level 0: what a backend says of itself, and that it loads: alone, twice, in silence, and with nothing running."""

from __future__ import annotations

import json
import mmap
import os
import re
import sysconfig
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backend.backend import DeviceProperties, Kernel
from ...calls import selection
from ...calls.dispatch import DEVICE_TYPES
from ...errors import BackendUnavailable
from ..run.child import Children, Gone
from ..run.target import open_target
from ..verdict.judge import Mismatch
from ..verdict.truth import each
from . import BackendContext, backend_check, served

START_SECONDS = 100.0
END_SECONDS = 15.0
SLEEP_CYCLES = 200_000_000
HIDE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "MACA_VISIBLE_DEVICES")


def _expect(holds: bool, complaint: str) -> None:
    if not holds:
        raise Mismatch(complaint)


@backend_check("what a backend says of itself is complete, of the declared types, and plain data", level=0)
def manifest(ctx: BackendContext) -> None:
    b = ctx.target.backend
    _expect(bool(re.fullmatch(r"[a-z][a-z0-9_-]*", b.name)), f"name is {b.name!r}, expected lower case")
    _expect(isinstance(b.vendor, str) and bool(b.vendor.strip()), f"vendor is {b.vendor!r}, expected a name")
    _expect(b.device_type in DEVICE_TYPES, f"device_type is {b.device_type!r}, expected {' or '.join(DEVICE_TYPES)}")
    for field in ("simulated", "checks_contents"):
        _expect(isinstance(getattr(b, field), bool), f"{field} is {getattr(b, field)!r}, expected True or False")
    _expect(type(b.priority) is int, f"priority is {b.priority!r}, expected an integer")
    for field in ("probe", "load", "properties"):
        _expect(callable(getattr(b, field)), f"{field} is {getattr(b, field)!r}, expected a function")
    _expect((reason := b.probe()) is None, f"it serves here, but its probe says {reason!r}")
    device = b.properties()
    _expect(isinstance(device, DeviceProperties) and bool(device.name), f"properties() is {device!r}, expected a name")
    try:
        json.dumps(dict(device.details))
    except (TypeError, ValueError) as error:
        raise Mismatch(f"the device's details are no plain data: {error}") from error


@backend_check("every kernel is of a declared operator, at the version of its declaration", level=0)
def versions(ctx: BackendContext) -> None:
    offered = ctx.target.backend.load()
    refused = [f"{name}: {ctx.target.refused[name]}" for name in offered if name not in ctx.target.kernels]
    _expect(not refused, "; ".join(refused))
    for name, kernel in offered.items():
        sound = isinstance(kernel, Kernel) and callable(kernel.plan) and callable(kernel.launch)
        _expect(sound and (kernel.run is None or callable(kernel.run)), f"{name}: {kernel!r} is no Kernel of functions")


# ---- in a process of its own


def _mapped() -> set[str]:
    """The shared objects of this process that are neither Python's nor torch's."""
    own = (sysconfig.get_path("platstdlib"), str(Path(torch.__file__).parent))
    paths = re.findall(r"(/\S+\.so\S*)$", Path("/proc/self/maps").read_text(), re.M)
    return {p for p in paths if not p.startswith(own) or "site-packages" in p.removeprefix(own[0])}


def _open_alone(connection: Connection, name: str, modules: Sequence[str], hide: bool) -> None:
    """The body of the process: lists the backend, opens it, loads it again, and says what it saw."""
    if hide:
        os.environ.update(dict.fromkeys(HIDE_DEVICES, ""))
    before = _mapped()
    for entry in entry_points(group=selection.GROUP, name=name):
        entry.load()
    listed = sorted(_mapped() - before)
    for module in modules:
        import_module(module)
    try:
        kernels = open_target(name).kernels
        again = selection.installed_backends()[name].backend
        same = again is not None and {n: k.version for n, k in again.load().items() if n in kernels}
        connection.send(("opened", {"listed": listed, "twice": same == {n: k.version for n, k in kernels.items()}}))
    except BackendUnavailable as error:
        connection.send(("unavailable", str(error)))


def _alone(ctx: BackendContext, hide: bool = False) -> tuple[str, Any]:
    """What a new process says, which must have printed nothing and have ended of itself."""
    children = Children()
    child = children.start(_open_alone, ctx.target.backend.name, ctx.modules, hide)
    try:
        heard = [message for _, message in children.listen(START_SECONDS)]
        if not heard:
            child.abort()
            raise Mismatch(f"a new process did not open it in {START_SECONDS:g} s:\n{child.output.finish()}")
        if isinstance(heard[0], Gone):
            raise Mismatch(f"a new process did not open it: {heard[0].cause}:\n{child.output.finish()}")
        word, value = heard[0]
        _expect(child.ended(END_SECONDS), f"a process that has loaded it does not end in {END_SECONDS:g} s")
        _expect(child.process.exitcode == 0, f"a process that has loaded it ends badly: {child.cause_of_death()}")
        printed = child.output.finish()
        _expect(not printed, f"it prints when it is loaded:\n{printed}")
        return word, value
    finally:
        child.close()


@backend_check(
    "a new process lists it without native code, opens it, loads it a second time, prints nothing and ends well",
    level=0,
)
def loads_alone(ctx: BackendContext) -> None:
    word, found = _alone(ctx)
    _expect(word == "opened", f"a new process cannot open it: {found}")
    _expect(not found["listed"], f"listing it loads native code: {', '.join(found['listed'])}")
    _expect(found["twice"], "loading it a second time gives other kernels")


@backend_check(
    "where its devices are hidden, a new process is told why it cannot run there",
    level=0,
    absent=lambda opened: "host memory cannot be hidden from a process" if opened.on_host else "",
)
def reason_without_device(ctx: BackendContext) -> None:
    word, reason = _alone(ctx, hide=True)
    _expect(word == "unavailable" and bool(reason.strip()), "with its devices hidden it opens as if they were there")


# ---- plans


def unreadable(tensor: Tensor) -> Tensor:
    """A tensor like this one in memory that may not be touched: a read or a write ends the process."""
    if not tensor.numel():
        return tensor
    return torch.frombuffer(mmap.mmap(-1, tensor.nbytes, prot=0), dtype=tensor.dtype).view(tensor.shape)


@backend_check("a plan reads no memory and waits for no device, and is the same each time", level=0, parts=served)
def plans_on_host(ctx: BackendContext) -> None:
    plan, args = ctx.target.kernels[ctx.part].plan, each(ctx.args(), Tensor.contiguous)
    size = plan(*args)
    _expect(type(size) is int and size >= 0, f"the plan returns {size!r}, expected a number of bytes")
    if ctx.target.device == "cpu":
        again = plan(*each(args, unreadable))
    else:
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        again = plan(*args)
        _expect(not torch.cuda.current_stream().query(), "the plan waits for the device")
        torch.cuda.synchronize()
    _expect(again == size, f"the plan asks for {size} bytes, then for {again}")
