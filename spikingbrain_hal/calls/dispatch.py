"""Below torch's dispatcher: one Python kernel for each (operator, dispatch key), which looks the backend up.

The path of a call is public function -> :func:`spikingbrain_hal.calls.autograd.call` -> torch's dispatcher ->
``kernel`` below -> the backend's ``plan`` and ``launch``. ``kernel`` checks nothing itself: the native plan guards
every argument, and when it refuses, the declaration says why in its own words.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend.backend import Kernel
from ..declare.arguments import converted
from ..declare.registry import LIBRARY
from ..declare.spec import NAMESPACE, OpSpec
from ..errors import StrideError, UnsupportedOp
from . import selection

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
DEVICE_TYPES = tuple(_KEYS)
_counts: Counter[str] = Counter()
_warned: set[tuple[str, str, str]] = set()
_noting = threading.Lock()  # of both


def stats() -> dict[str, int]:
    """Counts since import: ``copies`` of inputs with strides no kernel takes, and ``fallbacks`` to the reference."""
    return {"copies": _counts["copies"], "fallbacks": _counts["fallbacks"]}


def needs_grad(args: Sequence[Any]) -> bool:
    """Whether any tensor among the arguments requires a gradient."""
    for a in args:
        if isinstance(a, Tensor) and a.requires_grad:
            return True
    return False


def register(spec: OpSpec) -> None:
    """Registers the reference for every device, and the backend look-up for the device types that have backends."""
    LIBRARY.impl(spec.name, spec.run_reference, "CompositeExplicitAutograd")
    LIBRARY.impl(spec.name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY._register_fake(spec.name, spec.fake)
    spec.raw = getattr(getattr(torch.ops, NAMESPACE), spec.name).default
    for device_type, key in _KEYS.items():
        LIBRARY.impl(spec.name, _make_kernel(spec, device_type), key)
    _refuse_vmap(spec)


def _make_kernel(spec: OpSpec, device_type: str) -> Callable[..., Any]:
    """The kernel torch calls. Every microsecond here is one of every call, so what it looks up is bound once."""
    name, allocate, single = spec.name, spec.allocate, len(spec.outputs) == 1
    writes, written = bool(spec.mutates), _places(spec, spec.mutates)
    pinned = selection.PINNED.setdefault(device_type, selection.Pinned())
    actives, grad_enabled = selection.ACTIVE, torch.is_grad_enabled
    threads, launch = torch.get_num_threads, _launch_on(device_type)
    increment_version = torch._C._increment_version

    def kernel(*args: Any) -> Any:
        if grad_enabled() and needs_grad(args):
            raise RuntimeError(
                f"torch.ops.{NAMESPACE}.{name} has no gradient of its own; call spikingbrain_hal.ops.{name}, "
                "or this under torch.no_grad()"
            )
        active = pinned.active or actives.get(device_type) or selection.current(device_type)
        found = active.kernels.get(name)
        if found is None:
            return _unserved(spec, args, device_type)
        try:
            outputs = allocate(*args)
            if active.check_contents:
                spec.check_contents(args)
            if found.run is not None:
                found.run(*args, *outputs, 0, threads())
            else:
                launch(found, args, outputs, threads())
        except StrideError as error:
            return kernel(*_contiguous(spec, args, error))
        except UnsupportedOp as error:
            spec.check(args)
            wide = _wide(spec, args)
            if wide:
                return _widened(spec, kernel(*_narrowed(spec, args, wide)), wide)
            return _fall_back(spec, args, device_type, str(error))
        except Exception:
            spec.check(args)  # what the declaration says is wrong, before what the kernel says
            raise
        if writes:
            increment_version(args[written])
        return outputs[0] if single else outputs

    return kernel


def _places(spec: OpSpec, names: Sequence[str]) -> slice:
    """Where neighbouring inputs stand among the arguments."""
    at = [list(spec.inputs).index(n) for n in names] or [0]
    if at != list(range(at[0], at[0] + len(at))):
        raise ValueError(f"{spec.name}: inputs written in place are declared side by side")
    return slice(at[0], at[0] + len(names))


def _launch_on(device_type: str) -> Callable[[Kernel, Sequence[Any], Sequence[Tensor], int], None]:
    """Plan, workspace and launch, on the device and the current stream of the first tensor."""

    def launch(kernel: Kernel, args: Sequence[Any], outputs: Sequence[Tensor], threads: int, stream: int = 0) -> None:
        size = kernel.plan(*args)
        workspace = torch.empty(size, dtype=torch.uint8, device=args[0].device) if size else None
        kernel.launch(*args, *outputs, workspace, stream, threads)

    def launch_there(kernel: Kernel, args: Sequence[Any], outputs: Sequence[Tensor], threads: int) -> None:
        device = args[0].device
        if any(isinstance(a, Tensor) and a.device != device for a in args):
            raise ValueError("the tensors are on several devices")  # the declaration says which
        with torch.cuda.device(device):
            launch(kernel, args, outputs, threads, int(torch.cuda.current_stream(device).cuda_stream))

    return launch if device_type == "cpu" else launch_there


def _unserved(spec: OpSpec, args: Sequence[Any], device_type: str) -> Any:
    active = selection.current(device_type)
    if active.backend is None:
        return spec.run_reference(*args)
    return _fall_back(spec, args, device_type, active.refused.get(spec.name, "no kernel"))


def _wide(spec: OpSpec, args: Sequence[Any]) -> dict[str, torch.dtype]:
    """The float64 inputs beside a first one of another dtype: kernels get them in the dtype of sums."""
    if _is_double(args[0]):
        return {}
    a = spec.bind(args)
    return {n: a[n].dtype for n in converted(spec) if _is_double(a[n])}


def _is_double(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype == torch.float64


def _narrowed(spec: OpSpec, args: Sequence[Any], wide: Mapping[str, torch.dtype]) -> list[Any]:
    return [a.float() if n in wide else a for n, a in spec.bind(args).items()]


def _widened(spec: OpSpec, outputs: Any, wide: Mapping[str, torch.dtype]) -> Any:
    """The outputs of a narrowed call: those that share the dtype of a narrowed input get it back."""
    results = zip(spec.outputs.values(), outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    return spec.unwrap(tuple(t.to(wide.get(output.dtype, t.dtype)) for output, t in results))


def _contiguous(spec: OpSpec, args: Sequence[Any], error: StrideError) -> list[Any]:
    """The arguments with copies of what has strides no kernel takes."""
    spec.check(args)
    copies = list(args)
    for i, name in enumerate(spec.inputs):
        if isinstance(args[i], Tensor) and not _has_usual_strides(args[i]) and name not in spec.mutates:
            copies[i] = args[i].clone(memory_format=torch.contiguous_format)
            _count("copies")
    if all(a is b for a, b in zip(args, copies, strict=True)):
        why = "what is written in place cannot be copied" if spec.mutates else "yet every input is contiguous"
        raise ValueError(f"{error}; {why}")
    return copies


def _has_usual_strides(tensor: Tensor) -> bool:
    """Kernels look at strides only; torch calls any tensor without elements contiguous."""
    return tensor.is_contiguous() and tensor.numel() > 0


def _fall_back(spec: OpSpec, args: Sequence[Any], device_type: str, reason: str) -> Any:
    active = selection.current(device_type)
    if active.strict:
        spec.check(args)
        raise UnsupportedOp(f"{spec.name} on backend {active.name}: {reason}")
    if _is_double(args[0]):  # no kernel serves it, and nobody expects one to
        return spec.run_reference(*args)
    _count("fallbacks")
    _warn_once(
        (spec.name, active.name, reason),
        f"{spec.name} runs as its PyTorch reference on {device_type}: backend {active.name} says: {reason}",
    )
    return spec.run_reference(*args)


def _count(what: str) -> None:
    with _noting:
        _counts[what] += 1


def _warn_once(key: tuple[str, str, str], text: str) -> None:
    with _noting:
        if key in _warned:
            return
        _warned.add(key)
    try:
        warnings.warn(text, stacklevel=5)
    except Warning:
        _warned.discard(key)  # whoever makes it an error hears it every time
        raise


def _refuse_vmap(spec: OpSpec) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{spec.name}: vmap is not supported; add a batch axis instead")

    LIBRARY.impl(spec.name, refuse, "FuncTorchBatched")
