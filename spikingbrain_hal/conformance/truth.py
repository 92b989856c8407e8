"""What the results of a call should be: the reference in float64, in working precision, and on absolute values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..spec import OpSpec

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Truth:
    """What outputs are compared with, by output name.

    Attributes:
        expected: In float64.
        base: The same maths in working precision: its error is the measure of a fair error.
        magnitude: The sum of the absolute values of the terms of each element.
        floor: For discrete outputs, the least and the greatest value that a correct kernel may give, where rounding
            can decide; equal to ``expected`` elsewhere.
        ceiling: See ``floor``.
        excluded: Elements that are not compared, because a derivative jumps there.
        scale: For gradients taken with the help of a rounded saved output, the size of the terms that it enters:
            where they cancel, its rounding remains.
    """

    expected: Named
    base: Named
    magnitude: Named
    floor: Named = field(default_factory=dict)
    ceiling: Named = field(default_factory=dict)
    excluded: Named = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)


def named_results(spec: OpSpec, function: Callable[..., Any], args: Sequence[Any]) -> Named:
    """Calls a function that behaves as the operator; inputs that it writes are copied first and count as outputs."""
    a = spec.bind(args)
    a |= {name: a[name].clone() for name in spec.mutates}
    results = function(*a.values())
    results = results if isinstance(results, tuple) else (results,)
    return dict(zip(spec.outputs, results, strict=True)) | {name: a[name] for name in spec.mutates}


def in_float64(spec: OpSpec, args: Sequence[Any]) -> list[Any]:
    """The same arguments with every float tensor in float64."""
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]


def in_absolute_value(spec: OpSpec, args: Sequence[Any]) -> list[Any]:
    """The arguments that the sum of absolute terms is the reference's result for."""
    return [
        x.abs() if name in spec.magnitude and isinstance(x, Tensor) else x
        for name, x in zip(spec.arguments, args, strict=True)
    ]


def truth(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """What ``outputs`` should have been; operators that decide spikes are judged on the spikes they gave."""
    from .replay import REPLAYS

    replay = REPLAYS.get(spec.name)
    return replay(spec, args, outputs) if replay else reference_truth(spec, args)


def reference_truth(spec: OpSpec, args: Sequence[Any]) -> Truth:
    """The truth of an operator whose outputs are smooth functions of its inputs, or exact."""
    wide = in_float64(spec, args)
    with torch.no_grad():
        return Truth(
            expected=named_results(spec, spec.reference, wide),
            base=named_results(spec, spec.reference, args),
            magnitude=named_results(spec, spec.reference, in_absolute_value(spec, wide)),
            scale=_scale(spec, args),
        )


def _scale(spec: OpSpec, args: Sequence[Any]) -> dict[str, float]:
    """Typical size of each gradient before cancellation, ``<grad_o, o> / |x|`` an element, from the saved outputs."""
    if spec.forward is None:
        return {}
    a = spec.bind(args)
    pairs = [(a[n], a[f"grad_{n}"]) for n in spec.forward.saved if a.get(f"grad_{n}") is not None]
    weight = sum(_rms(saved) * _rms(gradient) * saved.numel() for saved, gradient in pairs)
    sizes = {n: _rms(a[n]) * a[n].numel() for n in spec.forward.differentiable if a[n] is not None}
    return {f"grad_{n}": weight / size for n, size in sizes.items() if size > 0}


def _rms(values: Tensor) -> float:
    finite = values.double()[values.isfinite()]
    return float(finite.square().mean().sqrt()) if finite.numel() else 0.0
