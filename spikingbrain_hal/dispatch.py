"""From a torch call to a kernel: one Python kernel for each (operator, dispatch key), autograd above it.

The path of a call is public function -> :func:`call` -> torch dispatcher -> ``kernel`` below -> the backend's
``plan`` and ``launch``. ``kernel`` checks nothing itself: the native plan guards every argument, and when it refuses,
the declaration says why in its own words.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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


# ---- below autograd: the kernels that torch's dispatcher calls


def register(spec: OpSpec) -> None:
    """Registers the reference for every device, and the backend look-up for the device types that have backends."""
    LIBRARY.impl(spec.name, spec.run_reference, "CompositeExplicitAutograd")
    LIBRARY.impl(spec.name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY._register_fake(spec.name, spec.fake)
    for device_type, key in _KEYS.items():
        LIBRARY.impl(spec.name, _make_kernel(spec, device_type), key)
    _refuse_vmap(spec)


def _make_kernel(spec: OpSpec, device_type: str) -> Callable[..., Any]:
    from . import selection

    name, allocate, single = spec.name, spec.allocate, len(spec.outputs) == 1
    current, empty, byte = selection.current, torch.empty, torch.uint8
    threads, stream_of = torch.get_num_threads, _stream_of(device_type)

    def kernel(*args: Any) -> Any:
        found = current(device_type).kernels.get(name)
        if found is None:
            return _unserved(spec, args, device_type)
        try:
            outputs = allocate(*args)
            size = found.plan(*args)
            workspace = empty(size, dtype=byte, device=device_type) if size else None
            found.launch(*args, *outputs, workspace, stream_of(), threads())
        except Exception as error:
            return _refused(spec, args, device_type, found, error)
        return outputs[0] if single else outputs

    return kernel


def _stream_of(device_type: str) -> Callable[[], int]:
    if device_type == "cpu":
        return lambda: 0
    return lambda: int(torch.cuda.current_stream().cuda_stream)


def _unserved(spec: OpSpec, args: Sequence[Any], device_type: str) -> Any:
    from . import selection

    active = selection.current(device_type)
    if active.backend is None:
        return spec.run_reference(*args)
    return _fall_back(spec, args, device_type, active.refused.get(spec.name, "no kernel"))


def _refused(
    spec: OpSpec, args: Sequence[Any], device_type: str, found: Kernel, error: Exception
) -> Any:
    """A kernel declined the call: copy for it, fall back, or raise what the declaration says."""
    if isinstance(error, StrideError):
        return _run_on_copies(spec, args, device_type, found, error)
    spec.check(args)
    if isinstance(error, UnsupportedOp):
        return _fall_back(spec, args, device_type, str(error))
    raise error


def _run_on_copies(
    spec: OpSpec, args: Sequence[Any], device_type: str, found: Kernel, error: StrideError
) -> Any:
    spec.check(args)
    copied = list(args)
    for i, name in enumerate(spec.inputs):
        if isinstance(args[i], Tensor) and not args[i].is_contiguous():
            if name in spec.mutates:
                raise ValueError(f"{error}; {name} is written in place and cannot be copied")
            copied[i] = args[i].contiguous()
            _counts["copies"] += 1
    if all(a is b for a, b in zip(args, copied, strict=True)):
        raise error
    try:
        outputs = spec.allocate(*copied)
        size = found.plan(*copied)
        workspace = torch.empty(size, dtype=torch.uint8, device=device_type) if size else None
        found.launch(*copied, *outputs, workspace, _stream_of(device_type)(), torch.get_num_threads())
    except UnsupportedOp as refusal:
        return _fall_back(spec, args, device_type, str(refusal))
    return spec.unwrap(outputs)


def _fall_back(spec: OpSpec, args: Sequence[Any], device_type: str, reason: str) -> Any:
    from . import selection

    active = selection.current(device_type)
    spec.check(args)
    if active.strict:
        raise UnsupportedOp(f"{spec.name} on backend {active.name}: {reason}")
    if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
        return spec.reference(*args)
    _counts["fallbacks"] += 1
    key = (spec.name, active.name, reason)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"{spec.name} runs as its PyTorch reference on {device_type}: backend {active.name} says: {reason}",
            stacklevel=4,
        )
    return spec.reference(*args)


def _refuse_vmap(spec: OpSpec) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{spec.name}: vmap is not supported; add a batch axis instead")

    LIBRARY.impl(spec.name, refuse, "FuncTorchBatched")


# ---- above: autograd


def call(spec: OpSpec, *args: Any) -> Any:
    """Runs an operator with autograd and autocast; what the public functions end in."""
    if spec.autocast and torch.is_autocast_enabled(args[0].device.type):
        args = _autocast(spec, args)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        _refuse_transforms(spec, args)
    if spec.differentiable and torch.is_grad_enabled() and _needs_grad(spec, args):
        return _autograd_function(spec).apply(*args)
    return _raw(spec)(*args)


_raws: dict[str, Any] = {}
_functions: dict[str, type[torch.autograd.Function]] = {}


def _raw(spec: OpSpec) -> Any:
    raw = _raws.get(spec.name)
    if raw is None:
        raw = _raws[spec.name] = getattr(getattr(torch.ops, NAMESPACE), spec.name).default
    return raw


def _needs_grad(spec: OpSpec, args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and a.requires_grad for a in args[: len(spec.inputs)])


def _autocast(spec: OpSpec, args: Sequence[Any]) -> tuple[Any, ...]:
    dtype = torch.get_autocast_dtype(args[0].device.type)
    names = list(spec.inputs)
    return tuple(
        a.to(dtype) if i < len(names) and names[i] in spec.autocast and a.dtype != torch.float64 else a
        for i, a in enumerate(args)
    )


def _refuse_transforms(spec: OpSpec, args: Sequence[Any]) -> None:
    """torch's defaults would loop over the batch, or return a tangent of zero, without a word."""
    if torch.compiler.is_compiling():
        return
    for a in args:
        if isinstance(a, Tensor) and torch._C._functorch.is_batchedtensor(a):
            raise NotImplementedError(f"{spec.name}: vmap is not supported; add a batch axis instead")
        if isinstance(a, Tensor) and forward_ad._current_level >= 0 and _has_tangent(a):
            raise NotImplementedError(f"{spec.name}: forward-mode AD is not supported")


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def _autograd_function(spec: OpSpec) -> type[torch.autograd.Function]:
    function = _functions.get(spec.name)
    if function is None:
        make = _make_straight_through if spec.straight_through else _make_function
        function = _functions[spec.name] = make(spec)
    return function


def _make_straight_through(spec: OpSpec) -> type[torch.autograd.Function]:
    raw, extra = _raw(spec), len(spec.arguments) - 1

    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return raw(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0], *[None] * extra

    return StraightThrough


def _switch(spec: OpSpec, output: int) -> int | None:
    """The place of the attribute that turns an output on, if one does."""
    when = list(spec.outputs.values())[output].when
    return list(spec.attributes).index(when) if when in spec.attributes else None


def _make_function(spec: OpSpec) -> type[torch.autograd.Function]:
    backward_spec = spec.backward
    assert backward_spec is not None
    raw, raw_backward = _raw(spec), _raw(backward_spec)
    count = len(spec.inputs)
    names = list(spec.inputs)
    saved_at = [list(spec.outputs).index(n) for n in spec.saved]
    given_at = [i for i, n in enumerate(spec.outputs) if f"grad_{n}" in backward_spec.inputs]
    discrete_at = [i for i in range(len(spec.outputs)) if i not in given_at]
    slots = {names.index(n): i for i, n in enumerate(spec.differentiable)}
    switches = {i: _switch(spec, i) for i in given_at}  # compiled graphs hand zeros for outputs that are absent

    class Gradient(torch.autograd.Function):
        """The backward operator, refusing to be differentiated itself."""

        @staticmethod
        def forward(*args: Any) -> Any:
            return raw_backward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            raise NotImplementedError(f"{spec.name}: double backward is not supported")

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return raw(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.save_for_backward(*inputs[:count], *(outputs[i] for i in saved_at))
            ctx.attributes = inputs[count:]
            ctx.set_materialize_grads(False)
            if discrete_at:
                ctx.mark_non_differentiable(*(outputs[i] for i in discrete_at))
            if not torch.compiler.is_compiling():
                from . import selection

                ctx.active = selection.current(inputs[0].device.type)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            present = [switches[i] is None or ctx.attributes[switches[i]] for i in given_at]
            given = (gradients[i] if p else None for i, p in zip(given_at, present, strict=True))
            args = (*ctx.saved_tensors, *given, *ctx.attributes)
            if torch.compiler.is_compiling():
                found = raw_backward(*args)
            else:
                from . import selection

                with selection.pinned(ctx.active):
                    found = Gradient.apply(*args) if torch.is_grad_enabled() else raw_backward(*args)
            found = found if isinstance(found, (tuple, list)) else (found,)
            return tuple(
                found[slots[i]] if i in slots and ctx.needs_input_grad[i] else None
                for i in range(count + len(ctx.attributes))
            )

    Operator.__name__ = Operator.__qualname__ = spec.name
    Gradient.__name__ = Gradient.__qualname__ = f"{spec.name}_backward"
    return Operator
