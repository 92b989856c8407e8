"""The allocation of an operator's outputs, generated from its axes: it runs in every call, so it does only that."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..declare.spec import OpSpec, Output


def compile_allocate(spec: OpSpec) -> Callable[..., tuple[Tensor, ...]]:
    """Writes and compiles ``allocate(*arguments) -> outputs``, one ``torch.empty`` for each output."""
    scope: dict[str, Any] = {"torch": torch, "empty": torch.empty}
    first = next(n for n in spec.inputs if n not in spec.optional)
    lines = [f"def allocate({', '.join(spec.arguments)}):", f"    device = {first}.device"]
    made = []
    for output in spec.outputs.values():
        shape = f"{output.like}.shape" if output.like else _shape_expression(spec, output, scope)
        call = f"empty({shape}, dtype={_dtype_expression(spec, output, first)}, device=device)"
        if output.when:
            present = f"{output.when} is not None" if output.when in spec.inputs else output.when
            call = f"({call} if {present} else empty(0, dtype=torch.float32, device=device))"
        made.append(call)
    lines.append(f"    return ({', '.join(made)},)")
    exec("\n".join(lines), scope)
    return scope["allocate"]  # type: ignore[no-any-return]


def _shape_expression(spec: OpSpec, output: Output, scope: dict[str, Any]) -> str:
    parts = []
    for axis in output.axes.split():
        if axis.isdigit() or axis in spec.attributes:
            parts.append(axis)
        elif axis in spec.derived:
            scope[f"derive_{axis}"] = spec.derived[axis]
            given = inspect.signature(spec.derived[axis]).parameters
            parts.append(f"derive_{axis}({', '.join(given)})")
        else:
            parts.append(_axis_expression(spec, axis))
    return f"({', '.join(parts)},)" if parts else "()"


def _axis_expression(spec: OpSpec, axis: str) -> str:
    for name, declared in spec.inputs.items():
        names = declared.axes.split()
        if name in spec.optional or "|" in names or axis not in names:
            continue
        at = names.index(axis)
        after = len(names) - at - 1
        if axis == "...":
            return f"*{name}.shape[{at}:{-after if after else ''}]"
        return f"{name}.shape[{at if '...' not in names[:at] else at - len(names)}]"
    raise ValueError(f"{spec.name}: no required input has the axis {axis} that an output needs")


def _dtype_expression(spec: OpSpec, output: Output, first: str) -> str:
    if output.dtype in spec.inputs:
        return f"{output.dtype}.dtype"
    if output.dtype == "acc":
        return f"(torch.float64 if {first}.dtype is torch.float64 else torch.float32)"
    if output.dtype in spec.attributes:
        return f"getattr(torch, {output.dtype})"
    return f"torch.{output.dtype}"
