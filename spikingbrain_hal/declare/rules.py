"""Rules between the arguments of an operator: each takes all arguments and axis sizes and says what is wrong."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from .spec import Rule

LARGEST = 3.4028234663852886e38  # of float32


def multiple(large: str, small: str) -> Rule:
    """A rule: axis ``large`` is a multiple of axis ``small``, neither being 0."""

    def rule(a: Mapping[str, Any]) -> str | None:
        if a[small] > 0 and a[large] > 0 and a[large] % a[small] == 0:
            return None
        return f"{large} is {a[large]}, expected a positive multiple of {small}, which is {a[small]}"

    return rule


def one_of(attribute: str, *accepted: str) -> Rule:
    """A rule: a string attribute is one of these."""

    def rule(a: Mapping[str, Any]) -> str | None:
        if a[attribute] in accepted:
            return None
        return f"{attribute} is {reprlib.repr(a[attribute])}, expected one of {', '.join(map(repr, accepted))}"

    return rule


def finite(*attributes: str) -> Rule:
    """A rule: numbers are ones that float32 holds, neither infinite nor NaN."""

    def rule(a: Mapping[str, Any]) -> str | None:
        wrong = [n for n in attributes if not abs(a[n]) <= LARGEST]
        return f"{wrong[0]} is {a[wrong[0]]}, expected a finite number" if wrong else None

    return rule


def not_empty(*names: str) -> Rule:
    """A rule: offsets, where given, hold at least the first."""

    def rule(a: Mapping[str, Any]) -> str | None:
        empty = [n for n in names if a[n] is not None and a[n].numel() == 0]
        return f"{empty[0]} is empty, expected at least the offset 0" if empty else None

    return rule


def offsets(name: str, axis: str) -> Rule:
    """A rule of contents: offsets into ``axis`` start at 0, never decrease and end within it."""

    def rule(a: Mapping[str, Any]) -> str | None:
        if a[name] is None:
            return None
        before, values = 0, a[name].tolist()
        for i, value in enumerate(values):
            if i == 0 and value != 0:
                return f"{name}[0] is {value}, expected 0"
            if value < before:
                return f"{name}[{i}] is {value}, expected no less than the offset before it, {before}"
            before = value
        return f"{name} ends at {before}, expected at most {axis}={a[axis]}" if before > a[axis] else None

    return rule


def lengths(name: str, axis: str) -> Rule:
    """A rule of contents: lengths lie within ``axis``."""

    def rule(a: Mapping[str, Any]) -> str | None:
        for i, n in enumerate([] if a[name] is None else a[name].tolist()):
            if not 0 <= n <= a[axis]:
                return f"{name}[{i}] is {n}, expected a value from 0 to {axis}={a[axis]}"
        return None

    return rule


def own_memory(name: str) -> Rule:
    """A rule: no two elements of a tensor share memory, as strides nest; what is written in place needs that."""

    def rule(a: Mapping[str, Any]) -> str | None:
        tensor, reach = a[name], 0
        if tensor is None or tensor.numel() == 0:
            return None
        axes = [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
        for stride, size in sorted(axes):
            if stride <= reach:
                return (
                    f"{name} is written in place and has strides {list(tensor.stride())} for the shape "
                    f"{list(tensor.shape)}, expected memory of its own for every element: each stride beyond what the "
                    "axes of smaller strides reach"
                )
            reach += (size - 1) * stride
        return None

    return rule


def in_range(attribute: str, low: float, high: float = float("inf"), text: str = "") -> Rule:
    """A rule: a number lies in [low, high]; NaN does not."""

    def rule(a: Mapping[str, Any]) -> str | None:
        if low <= a[attribute] <= high:
            return None
        return f"{attribute} is {a[attribute]}, expected {text or f'a value in [{low}, {high}]'}"

    return rule
