"""Inputs for any declared operator: the arguments of one call, the same for the same seed on every machine."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from .fills import FILLS, Arguments
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
