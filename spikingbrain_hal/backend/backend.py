"""What a backend is: a name, a device type, a reason when it is not available, and two callables an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """One operator of one backend. Any two callables do: pybind11 functions, a vendor library, Triton.

    Python functions are launched outside autocast and without gradients, whatever their caller has turned on.

    Attributes:
        plan: ``plan(*inputs, *attributes) -> workspace bytes``. Runs on the host, reads metadata only, writes nothing.
            Raises :class:`UnsupportedOp` for a legal call it doesn't serve, ValueError or TypeError for a wrong one.
        launch: ``launch(*inputs, *attributes, *outputs, workspace, stream, num_threads) -> None``. Runs the same plan
            first; a refused call has written nothing. ``workspace`` is a uint8 tensor or None, ``stream`` an integer
            handle (0 on a CPU).
        version: Version of the operator's declaration that the kernel was written against.
        run: ``run(*inputs, *attributes, *outputs, stream, num_threads)``: plan, workspace and launch in one call, for a
            module of host memory that can ask the framework's allocator itself. Optional; the dispatcher prefers it.
        signature: The names and types of its arguments, of a native module that knows them; see
            :func:`spikingbrain_hal.backend.plugin.signature_of`.
    """

    plan: Callable[..., int]
    launch: Callable[..., None]
    version: int
    run: Callable[..., None] | None = None
    signature: str | None = None


@dataclass(frozen=True)
class DeviceProperties:
    """What the reports print about a device.

    Attributes:
        name: The device's own name.
        details: Anything worth stating: instruction set, driver, memory.
    """

    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Numerics:
    """How precisely a backend computes with float32. Conformance measures it: kernels may be better, never worse.

    Attributes:
        tf32: Factors of products may be rounded to the 11 bits of TF32. Such products are outside tolerance; saying so
            tells what is wrong.
        flush_to_zero: Numbers below the smallest normal one may become 0.
        accumulate: The narrowest dtype that sums and states are kept in: ``"float32"``, ``"float16"``, ``"bfloat16"``.
    """

    tf32: bool = False
    flush_to_zero: bool = False
    accumulate: str = "float32"


@dataclass(frozen=True)
class Backend:
    """A set of kernels for one kind of device.

    Attributes:
        name: Lower case, the name people select it by.
        vendor: Whose hardware it serves.
        device_type: The torch device type of the tensors it takes.
        probe: Returns None when it can run here, else the reason why not. Must not raise.
        load: Returns its kernels by operator name; called once, on first use.
        properties: Describes the device.
        simulated: True for a backend that stands in for hardware that isn't there; never chosen by itself.
        priority: The higher of two available backends of one device type is chosen.
        checks_contents: Its kernels refuse bad values (offsets that decrease, counts that do not fit) themselves. Where
            they don't, as on devices, the dispatcher does it under ``SBHAL_CHECK=1``, which waits for the device.
        numerics: What its float32 is.
    """

    name: str
    vendor: str
    device_type: str
    probe: Callable[[], str | None]
    load: Callable[[], Mapping[str, Kernel]]
    properties: Callable[[], DeviceProperties]
    simulated: bool = False
    priority: int = 0
    checks_contents: bool = True
    numerics: Numerics = Numerics()
