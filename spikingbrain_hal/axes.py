"""Axis names and the sizes that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
