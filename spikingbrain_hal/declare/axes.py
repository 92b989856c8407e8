"""Axis names and the sizes that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def pair_axes(names: Sequence[str], shape: tuple[int, ...]) -> list[tuple[str, Any]]:
    """Pairs axis names with sizes; ``...`` takes a tuple of what the others leave."""
    if "..." not in names:
        return list(zip(names, shape, strict=True))
    at = names.index("...")
    after = len(names) - at - 1
    middle = shape[at : len(shape) - after]
    head = list(zip(names[:at], shape[:at], strict=True))
    tail = list(zip(names[at + 1 :], shape[len(shape) - after :], strict=True))
    return [*head, ("...", middle), *tail]


def usual_scale(q: Tensor) -> float:
    """The factor on scores of queries, by their last axis; 1 for what has none, which the declaration judges."""
    width = q.shape[-1] if isinstance(q, Tensor) and q.dim() else 0
    return width**-0.5 if width else 1.0
