"""Rules between the arguments of an operator: each takes all arguments and axis sizes and says what is wrong."""

from __future__ import annotations

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
        return f"{attribute} is {a[attribute]!r}, expected one of {', '.join(map(repr, accepted))}"

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
        values = a[name].tolist()
        if values[:1] == [0] and values == sorted(values) and values[-1] <= a[axis]:
            return None
        return f"{name} is {values}, expected 0 first, no decrease, and at most {axis}={a[axis]} last"

    return rule


def lengths(name: str, axis: str) -> Rule:
    """A rule of contents: lengths lie within ``axis``."""

    def rule(a: Mapping[str, Any]) -> str | None:
        if a[name] is None or all(0 <= n <= a[axis] for n in a[name].tolist()):
            return None
        return f"{name} is {a[name].tolist()}, expected values from 0 to {axis}={a[axis]}"

    return rule


def in_range(attribute: str, low: float, high: float = float("inf"), text: str = "") -> Rule:
    """A rule: a number lies in [low, high]; NaN does not."""

    def rule(a: Mapping[str, Any]) -> str | None:
        if low <= a[attribute] <= high:
            return None
        return f"{attribute} is {a[attribute]}, expected {text or f'a value in [{low}, {high}]'}"

    return rule
