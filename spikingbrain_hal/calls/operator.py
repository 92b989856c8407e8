"""Declaring operators, and the backward operator that follows from each."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..declare.registry import LIBRARY, OPERATORS
from ..declare.rules import own_memory
from ..declare.spec import Input, OpSpec, Output, Rule
from . import autograd, dispatch

Flops = Callable[[Mapping[str, Any]], float]


def operator(
    name: str,
    *,
    reference: Callable[..., Any],
    inputs: Mapping[str, Input],
    outputs: Mapping[str, Output],
    differentiable: tuple[str, ...] = (),
    saved: tuple[str, ...] = (),
    rules: tuple[Rule, ...] = (),
    mutates: tuple[str, ...] = (),
    backward_version: int = 1,
    **declaration: Any,
) -> OpSpec:
    """Declares an operator and registers it as ``torch.ops.sbhal.<name>``.

    Args:
        name: Snake case; a trailing underscore where an input is written in place.
        reference: The operator in plain PyTorch; its parameters are the inputs, then the attributes, annotated
            ``Tensor``, ``Tensor | None``, ``float``, ``int``, ``bool`` or ``str``. Attribute defaults are what cases
            use. It serves every device and dtype, and is the oracle when given float64.
        inputs, outputs: The tensors, in the reference's order.
        differentiable: Inputs that get a gradient. Declares ``<name>_backward`` too, whose reference is autograd of
            this one; it takes the inputs, the outputs named in ``saved``, and one gradient for each float output.
        saved: Outputs that the backward is given.
        rules: What is wrong between arguments. That what ``mutates`` names has memory of its own is added.
        mutates: Inputs that are written in place.
        backward_version: Version of the backward operator.
        declaration: The remaining fields of :class:`OpSpec`.
    """
    parameters = inspect.signature(reference, eval_str=True).parameters
    attributes = {n: _named(p) for n, p in parameters.items() if n in list(parameters)[len(inputs) :]}
    spec = OpSpec(
        name=name,
        reference=reference,
        inputs=inputs,
        outputs=outputs,
        optional=frozenset(n for n in inputs if parameters[n].annotation != Tensor),
        attributes={n: p for n, p in attributes.items() if p.kind is not p.KEYWORD_ONLY},
        differentiable=differentiable,
        saved=saved,
        rules=(*rules, *map(own_memory, mutates)),
        mutates=mutates,
        doc=inspect.getdoc(reference) or "",
        **declaration,
    )
    _register(spec)
    if differentiable and not spec.straight_through:
        spec.backward = _derive_backward(spec, backward_version)
        _register(spec.backward)
    if differentiable:
        autograd.register(spec)
    return spec


def _named(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(annotation=getattr(parameter.annotation, "__name__", "str"))


def _register(spec: OpSpec) -> None:
    OPERATORS[spec.name] = spec
    LIBRARY.define(spec.schema, tags=(torch.Tag.pt2_compliant_tag,))
    dispatch.register(spec)


def _derive_backward(spec: OpSpec, version: int) -> OpSpec:
    def as_input(output: Output) -> Input:
        dtype = "float" if output.dtype in spec.attributes else output.dtype
        return Input(spec.inputs[output.like].axes if output.like else output.axes, dtype)

    saved = {n: as_input(spec.outputs[n]) for n in spec.saved}
    given = {f"grad_{n}": as_input(o) for n, o in spec.outputs.items() if _is_float(o)}
    outputs = {
        f"grad_{n}": Output(dtype=n, like=n, when=n if n in spec.optional else None) for n in spec.differentiable
    }
    return OpSpec(
        name=f"{spec.name}_backward",
        reference=_autograd_reference(spec),
        inputs={**spec.inputs, **saved, **given},
        outputs=outputs,
        optional=spec.optional | set(given),
        attributes=spec.attributes,
        derived=spec.derived,
        rules=spec.rules,
        contents=spec.contents,
        cases=spec.cases,
        bench=spec.bench,
        flops=_backward_flops(spec),
        products=spec.products,
        version=version,
        source=spec.source,
        doc=f"Gradients of {spec.name}; an absent gradient counts as zero.",
        forward=spec,
    )


def _backward_flops(spec: OpSpec) -> Flops | None:
    """The least work of a backward: every product has two derivatives.

    Where its operands have none, the product itself is made once more for the derivatives of what scales it.
    """
    flops = spec.flops
    factor = 2 if set(spec.products or spec.differentiable) & set(spec.differentiable) else 1
    return None if flops is None else lambda a: factor * flops(a)


def _is_float(output: Output) -> bool:
    return output.dtype not in ("int8", "int16", "int32", "int64")


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """Autograd on, writes to views included, whatever the caller has turned off.

    Also below the dispatcher's autograd layer, where compiled graphs call, and in inference mode.
    """
    with torch.inference_mode(False):
        include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        keys = torch._C.DispatchKey
        allowed = exclude.remove(keys.AutogradFunctionality).remove(keys.ADInplaceOrView)
        with torch._C._ForceDispatchKeyGuard(include, allowed), torch.enable_grad():
            yield


def _recordable(argument: Any) -> Any:
    """A copy of what was made in inference mode, which autograd refuses."""
    return argument.clone() if isinstance(argument, Tensor) and argument.is_inference() else argument


def _autograd_reference(spec: OpSpec) -> Callable[..., Any]:
    """Gradients by autograd of the forward reference, which gets the saved outputs it names as keywords."""
    accepts = inspect.signature(spec.reference).parameters
    given = [n for n, o in spec.outputs.items() if _is_float(o)]
    names = (*spec.inputs, *spec.saved, *(f"grad_{n}" for n in given), *spec.attributes)

    def reference(*args: Any) -> Any:
        with _recording():
            a = dict(zip(names, map(_recordable, args), strict=True))
            leaves = {n: a[n].detach().requires_grad_() for n in spec.differentiable if a[n] is not None}
            inputs = [leaves.get(n, a[n]) for n in spec.inputs]
            known = {n: a[n] for n in spec.saved if n in accepts}
            results = spec.reference(*inputs, *(a[n] for n in spec.attributes), **known)
            outputs = dict(zip(spec.outputs, results if isinstance(results, tuple) else (results,), strict=True))
            reached = [n for n in given if outputs[n].requires_grad]
            found = (
                torch.autograd.grad(
                    [outputs[n] for n in reached],
                    list(leaves.values()),
                    [torch.zeros_like(outputs[n]) if a[f"grad_{n}"] is None else a[f"grad_{n}"] for n in reached],
                    allow_unused=True,
                )
                if reached
                else [None] * len(leaves)
            )
        gradients = dict(zip(leaves, found, strict=True))
        absent = args[0].new_empty(0, dtype=torch.float32)
        full = [_filled(gradients[n], leaves[n]) if n in leaves else absent for n in spec.differentiable]
        return full[0] if len(full) == 1 else tuple(full)

    return reference


def _filled(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(leaf).detach()
    return gradient.detach().to(leaf.dtype).contiguous()
