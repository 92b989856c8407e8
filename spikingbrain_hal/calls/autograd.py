"""Above torch's dispatcher: autograd, autocast, and the transforms that are refused by name.

The operators themselves carry no gradient, which keeps a call without one cheap; :func:`call` wraps them in an
``autograd.Function`` when a gradient is needed. A backward is an operator of its own, so any backend can run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..declare.arguments import check_castable, check_types
from ..declare.spec import NAMESPACE, OpSpec
from . import selection
from .dispatch import needs_grad

_any_autocast = torch._C._is_any_autocast_enabled
_any_transform = torch._C._are_functorch_transforms_active
_grad_enabled = torch.is_grad_enabled
_functions: dict[str, type[torch.autograd.Function]] = {}


def call(spec: OpSpec, *args: Any) -> Any:
    """Runs an operator with autograd and autocast; what the public functions end in."""
    try:
        if _grad_enabled() or _any_autocast() or _any_transform() or forward_ad._current_level >= 0:
            return _call_with_care(spec, args)
        return spec.raw(*args)
    except RuntimeError as error:
        if f"{NAMESPACE}::{spec.name}() " in str(error):  # torch refuses it by the schema; the declaration says why
            check_types(spec, args)
        raise


def _call_with_care(spec: OpSpec, args: tuple[Any, ...]) -> Any:
    if spec.autocast and _any_autocast():
        args = _autocast(spec, args)
    if forward_ad._current_level >= 0 or _any_transform():
        _refuse_transforms(spec, args)
    if not (_grad_enabled() and needs_grad(args)):
        return spec.raw(*args)
    if spec.differentiable:
        return _functions[spec.name].apply(*args)
    if spec.mutates:
        raise RuntimeError(f"{spec.name} has no gradient: call it under torch.no_grad()")
    with torch.no_grad():
        return spec.raw(*args)


def _autocast(spec: OpSpec, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Casts the inputs that the declaration names, where autocast is on; float64 and what is beside it stay."""
    check_castable(spec, args)
    device_type = args[0].device.type
    at = [i for i, n in enumerate(spec.inputs) if n in spec.autocast and args[i] is not None]
    # torch 2.6 doesn't compile is_autocast_available
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    if not known or not torch.is_autocast_enabled(device_type):
        return args
    if any(args[i].dtype == torch.float64 for i in at):
        return args
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(a.to(dtype) if i in at else a for i, a in enumerate(args))


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


def register(spec: OpSpec) -> None:
    """Makes an operator's ``autograd.Function``, before anyone compiles a call: Dynamo traces no class definition."""
    _functions[spec.name] = _make_straight_through(spec) if spec.straight_through else _make_function(spec)


def _make_straight_through(spec: OpSpec) -> type[torch.autograd.Function]:
    raw, extra = spec.raw, len(spec.arguments) - 1

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
    return list(spec.attributes).index(when) if when is not None and when in spec.attributes else None


def _make_function(spec: OpSpec) -> type[torch.autograd.Function]:
    backward_spec = spec.backward
    assert backward_spec is not None
    raw, raw_backward = spec.raw, backward_spec.raw
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
                ctx.device_type = inputs[0].device.type
                ctx.active = selection.current(ctx.device_type)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            present = [switches[i] is None or ctx.attributes[switches[i]] for i in given_at]
            given = (gradients[i] if p else None for i, p in zip(given_at, present, strict=True))
            args = (*ctx.saved_tensors, *given, *ctx.attributes)
            if torch.compiler.is_compiling():
                found = raw_backward(*args)
            else:
                with selection.pinned(ctx.device_type, ctx.active):
                    backward = Gradient.apply if torch.is_grad_enabled() else raw_backward
                    found = backward(*args)
            found = found if isinstance(found, (tuple, list)) else (found,)
            return tuple(
                found[slots[i]] if i in slots and ctx.needs_input_grad[i] else None
                for i in range(count + len(ctx.attributes))
            )

    Operator.__name__ = Operator.__qualname__ = spec.name
    Gradient.__name__ = Gradient.__qualname__ = f"{spec.name}_backward"
    return Operator
