"""Below torch's dispatcher: one Python kernel for each (operator, dispatch key), which looks the backend up.

The path of a call is public function -> :func:`spikingbrain_hal.autograd.call` -> torch's dispatcher -> ``kernel``
below -> the backend's ``plan`` and ``launch``. ``kernel`` checks nothing itself: the native plan guards every argument,
and when it refuses, the declaration says why in its own words.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import selection
from .backend import Kernel
from .errors import StrideError, UnsupportedOp
from .registry import LIBRARY
from .spec import NAMESPACE, OpSpec

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_counts: Counter[str] = Counter()
_warned: set[tuple[str, str, str]] = set()


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
    name, run = spec.name, _make_run(spec, device_type)
    pinned, actives = selection.PINNED, selection.ACTIVE  # looked into here: a call of current() costs as much again
    grad_enabled = torch.is_grad_enabled

    def kernel(*args: Any) -> Any:
        if grad_enabled() and needs_grad(args):
            raise RuntimeError(
                f"torch.ops.{NAMESPACE}.{name} has no gradient of its own; call spikingbrain_hal.ops.{name}, "
                "or this under torch.no_grad()"
            )
        active = getattr(pinned, "active", None) or actives.get(device_type) or selection.current(device_type)
        found = active.kernels.get(name)
        if found is None:
            return _unserved(spec, args, device_type)
        try:
            return run(found, args)
        except StrideError:
            return _run_on_copies(spec, args, device_type, lambda copies: run(found, copies))
        except Exception as error:
            return _refused(spec, args, device_type, error)

    return kernel


def _make_run(spec: OpSpec, device_type: str) -> Callable[[Kernel, Sequence[Any]], Any]:
    """Allocates, plans and launches: all that a call that succeeds does."""
    allocate, single = spec.allocate, len(spec.outputs) == 1
    written = [list(spec.inputs).index(n) for n in spec.mutates]
    empty, byte, threads = torch.empty, torch.uint8, torch.get_num_threads
    stream_of, increment_version = _stream_of(device_type), torch.autograd.graph.increment_version

    def run(found: Kernel, args: Sequence[Any]) -> Any:
        outputs = allocate(*args)
        if found.run is not None:
            found.run(*args, *outputs, stream_of(), threads())
        else:
            size = found.plan(*args)
            workspace = empty(size, dtype=byte, device=args[0].device) if size else None
            found.launch(*args, *outputs, workspace, stream_of(), threads())
        if written:
            increment_version([args[i] for i in written])
        return outputs[0] if single else outputs

    return run


def _stream_of(device_type: str) -> Callable[[], int]:
    if device_type == "cpu":
        return lambda: 0
    return lambda: int(torch.cuda.current_stream().cuda_stream)


def _unserved(spec: OpSpec, args: Sequence[Any], device_type: str) -> Any:
    active = selection.current(device_type)
    if active.backend is None:
        return spec.run_reference(*args)
    return _fall_back(spec, args, device_type, active.refused.get(spec.name, "no kernel"))


def _refused(spec: OpSpec, args: Sequence[Any], device_type: str, error: Exception) -> Any:
    """A kernel declined the call: raise what the declaration says is wrong, or fall back, or let the error out."""
    spec.check(args)
    if isinstance(error, UnsupportedOp):
        return _fall_back(spec, args, device_type, str(error))
    raise error


def _run_on_copies(
    spec: OpSpec, args: Sequence[Any], device_type: str, run: Callable[[Sequence[Any]], Any]
) -> Any:
    spec.check(args)
    copies = list(args)
    for i, name in enumerate(spec.inputs):
        if isinstance(args[i], Tensor) and not args[i].is_contiguous() and name not in spec.mutates:
            copies[i] = args[i].contiguous()
            _counts["copies"] += 1
    try:
        return run(copies)
    except Exception as refusal:  # still a stride only where a tensor is written in place, which no copy can serve
        return _refused(spec, args, device_type, refusal)


def _fall_back(spec: OpSpec, args: Sequence[Any], device_type: str, reason: str) -> Any:
    active = selection.current(device_type)
    if active.strict:
        spec.check(args)
        raise UnsupportedOp(f"{spec.name} on backend {active.name}: {reason}")
    if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
        return spec.run_reference(*args)
    _counts["fallbacks"] += 1
    key = (spec.name, active.name, reason)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"{spec.name} runs as its PyTorch reference on {device_type}: backend {active.name} says: {reason}",
            stacklevel=4,
        )
    return spec.run_reference(*args)


def _refuse_vmap(spec: OpSpec) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{spec.name}: vmap is not supported; add a batch axis instead")

    LIBRARY.impl(spec.name, refuse, "FuncTorchBatched")
