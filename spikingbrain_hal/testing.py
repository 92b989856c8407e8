"""For people who write kernels: inputs for any declared operator, poisoned memory, comparison with the oracle.

from spikingbrain_hal import testing
from spikingbrain_hal.registry import OPERATORS

spec = OPERATORS["attention"]
args = testing.make_inputs(spec, spec.cases[0], torch.bfloat16)
testing.assert_matches(spec, args, my_attention(*args))
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .backend import Backend, DeviceProperties, Kernel
from .fills import FILLS, Arguments
from .registry import OPERATORS
from .spec import Case, OpSpec


def make_inputs(
    spec: OpSpec,
    case: Case,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
    alternative: bool = False,
) -> list[Any]:
    """The arguments of one call, tensors then attributes, the same for the same seed on every machine.

    Args:
        spec: A declared operator, ``OPERATORS[name]``.
        case: Sizes and attributes, one of ``spec.cases`` or an own one.
        dtype: Of the first input and those that share it, by default the first it accepts; other float inputs are
            float32.
        seed: Chooses the values.
        device: Where the tensors lie.
        alternative: Take the second axes and dtypes of inputs that accept several, and leave one gradient out.

    A backward is given what the reference of its forward saves, and normal gradients.
    """
    dtype = dtype or io_dtypes(spec)[0]
    if spec.forward is not None:
        return _backward_inputs(spec, spec.forward, case, dtype, seed, device, alternative)
    generator = Generator().manual_seed(zlib.crc32(f"{seed}/{spec.name}/{case.id}".encode()))
    a: dict[str, Any] = dict.fromkeys(spec.inputs)
    a |= {name: case.attrs.get(name, p.default) for name, p in spec.attributes.items()}
    sizes: dict[str, Any] = {**case.sizes, "N+1": len(case.ragged) + 1}
    for name in _fill_order(spec, case):
        declared = spec.inputs[name]
        sizes |= _derived(spec, a)
        axes = declared.axes.split("|")[-1 if alternative else 0].split()
        shape = tuple(_flatten(sizes[axis] if not axis.isdigit() else int(axis) for axis in axes))
        known = {**a, **sizes, "ragged": case.ragged, "limit": sizes.get(declared.packs)}
        values = FILLS[declared.fill](shape, known, generator)
        a[name] = values.to(_choose_dtype(spec, name, a, dtype, alternative)).to(device)
    return [a[name] for name in spec.arguments]


def _flatten(sizes: Iterator[Any]) -> list[int]:
    return [n for size in sizes for n in (size if isinstance(size, tuple) else (size,))]


def _fill_order(spec: OpSpec, case: Case) -> list[str]:
    """Inputs with a derived axis come last, once the tensors that it derives from are there."""
    present = [n for n in spec.inputs if n not in spec.optional or n in case.given]
    return sorted(present, key=lambda n: any(axis in spec.derived for axis in spec.inputs[n].axes.split()))


def _derived(spec: OpSpec, a: Arguments) -> dict[str, int]:
    found = {}
    for axis, derive in spec.derived.items():
        names = inspect.signature(derive).parameters
        if all(a[n] is not None or n in spec.optional for n in names):
            found[axis] = derive(**{n: a[n] for n in names})
    return found


def _choose_dtype(spec: OpSpec, name: str, a: Arguments, dtype: torch.dtype, alternative: bool) -> torch.dtype:
    first = next(iter(spec.inputs))
    if name == first:
        return dtype
    if spec.inputs[name].dtype == "float":
        coarse = dtype in (torch.bfloat16, torch.float16)
        return torch.float32 if not alternative else dtype if coarse else torch.bfloat16
    return spec.accepted_dtypes(name, a)[-1 if alternative else 0]


def _backward_inputs(
    spec: OpSpec, forward: OpSpec, case: Case, dtype: torch.dtype, seed: int, device: str, alternative: bool
) -> list[Any]:
    args = make_inputs(forward, case, dtype, seed, device, alternative)
    results = forward.reference(*args)
    outputs = dict(zip(forward.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    generator = Generator().manual_seed(zlib.crc32(f"{seed}/{spec.name}/{case.id}".encode()))
    a = forward.bind(args) | {n: outputs[n] for n in forward.saved}
    gradients = [n for n in spec.inputs if n.startswith("grad_")]
    for name in gradients:
        like = outputs[name.removeprefix("grad_")]
        switch = forward.outputs[name.removeprefix("grad_")].when
        absent = switch is not None and not a[switch]
        values = torch.randn(like.shape, generator=generator)
        a[name] = None if absent else values.to(device=device, dtype=like.dtype)
    if alternative and len(gradients) > 1:
        a[gradients[-1]] = None
    return [a[name] for name in spec.arguments]


def io_dtypes(spec: OpSpec) -> tuple[torch.dtype, ...]:
    """The dtypes that an operator's first input may have on a backend; float64 is for the reference only."""
    first = next(iter(spec.inputs))
    accepted = spec.accepted_dtypes(first, dict.fromkeys(spec.inputs))
    return tuple(d for d in accepted if d != torch.float64)


def poison(tensor: Tensor) -> Tensor:
    """Fills a tensor with what uninitialised memory may hold at worst, in place: NaN, or -1 in every bit."""
    return tensor.fill_(torch.nan if tensor.is_floating_point() else 255 if tensor.dtype == torch.uint8 else -1)


def assert_matches(spec: OpSpec, args: Sequence[Any], outputs: Any) -> float:
    """Compares the results of one call with the float64 oracle by the rules of the conformance suite.

    Args:
        spec: The operator.
        args: The arguments of the call, as :func:`make_inputs` gives them.
        outputs: What the call returned, a tensor or a tuple.

    Returns:
        The worst error as a fraction of what is allowed.

    Raises:
        AssertionError: An output is outside tolerance; the message says which, where and by how much.
    """
    from .conformance.judge import judge
    from .conformance.truth import truth

    results = outputs if isinstance(outputs, tuple) else (outputs,)
    named = dict(zip(spec.outputs, results, strict=True))
    return judge(spec, truth(spec, args, named), named).worst


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
