"""What outputs are compared with, and calls by name that give it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import OpSpec

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
        allowed: The largest absolute error of each element, instead of the rules that compare with ``base``: for
            outputs whose rows may differ by many orders of magnitude.
        saved: The dtype of the outputs that a backward was given, if any: rounded, so its terms are.
    """

    expected: Named
    base: Named
    magnitude: Named
    floor: Named = field(default_factory=dict)
    ceiling: Named = field(default_factory=dict)
    excluded: Named = field(default_factory=dict)
    allowed: Named = field(default_factory=dict)
    saved: torch.dtype | None = None


def named_results(spec: OpSpec, function: Callable[..., Any], args: Sequence[Any]) -> Named:
    """Calls a function that behaves as the operator; inputs that it writes are copied first and count as outputs."""
    a = spec.bind(args)
    a |= {name: a[name].clone() for name in spec.mutates}
    results = function(*a.values())
    results = results if isinstance(results, tuple) else (results,)
    return dict(zip(spec.outputs, results, strict=True)) | {name: a[name] for name in spec.mutates}


def each(args: Iterable[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    """The arguments with every tensor changed."""
    return [change(a) if isinstance(a, Tensor) else a for a in args]


def in_float64(spec: OpSpec, args: Sequence[Any]) -> list[Any]:
    """The same arguments with every float tensor in float64."""
    return each(args, lambda t: t.double() if t.is_floating_point() else t)
