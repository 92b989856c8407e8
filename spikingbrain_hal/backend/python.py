"""A backend whose kernels are Python functions: where hardware support starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..declare.registry import OPERATORS
from ..declare.spec import OpSpec
from .backend import Backend, DeviceProperties, Kernel


def python_backend(
    name: str, functions: Mapping[str, Callable[..., Any]] | None = None, device_type: str = "cpu"
) -> Backend:
    """A backend whose kernels are Python functions that return their outputs; the references where none is given.

    Where hardware support starts: register it, replace one function after another, run the suite each time.

    Args:
        name: The backend's name.
        functions: By operator, ``f(*inputs, *attributes) -> outputs``.
        device_type: The torch device type of the tensors it takes.
    """
    given = functions or {}
    return Backend(
        name=name,
        vendor="Python functions",
        device_type=device_type,
        probe=lambda: None,
        load=lambda: {
            op: _python_kernel(spec, given.get(op, spec.reference), device_type) for op, spec in OPERATORS.items()
        },
        properties=lambda: DeviceProperties("PyTorch"),
        simulated=True,
        checks_contents=device_type == "cpu",
    )


def _python_kernel(spec: OpSpec, function: Callable[..., Any], device_type: str) -> Kernel:
    count = len(spec.arguments)
    check = spec.check_contents if device_type == "cpu" else spec.check  # a look at values waits for a device

    def plan(*args: Any) -> int:
        spec.check(args)
        return 0

    def launch(*args: Any) -> None:
        check(args[:count])
        given = [
            a.contiguous() if isinstance(a, Tensor) and n not in spec.mutates else a
            for n, a in zip(spec.arguments, args, strict=False)
        ]
        results = function(*given)
        outputs = args[count : count + len(spec.outputs)]
        for output, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
            output.copy_(result)

    return Kernel(plan, launch, spec.version)
