"""Kernels with one bug each, and kernels that are right in another way: what the suite proves itself on.

Each is a function under ``@bug``, ``@misbehaviour`` or ``@variant`` in a module of this folder. It stands in for one
operator's kernel while all the others are references. The suite must reject every bug at the quick profile and accept
every variant; ``python -m calibration`` measures by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from spikingbrain_hal.backend.backend import Kernel
from spikingbrain_hal.declare.registry import OPERATORS

Arguments = dict[str, Any]
Function = Callable[[Arguments], Any]
Change = Callable[[Kernel], Kernel]


@dataclass(frozen=True)
class Plant:
    """One kernel to put in place of a reference.

    Attributes:
        name: Its function's name, unique for an operator.
        op: The operator.
        sentence: What is wrong and who would ship it, or what is different and why that is right.
        check: The check that should reject it; empty for a variant.
        function: Takes the named arguments and returns the outputs; None where the kernel misbehaves instead.
        change: Makes the misbehaving kernel from the reference's.
    """

    name: str
    op: str
    sentence: str
    check: str = ""
    function: Function | None = None
    change: Change | None = None

    @property
    def id(self) -> str:
        """Unique among all plants."""
        return f"{self.op}/{self.name}"

    @property
    def wrong(self) -> bool:
        """Whether the suite must reject it."""
        return bool(self.check)


PLANTS: dict[str, Plant] = {}


def _add(plant: Plant) -> None:
    if plant.op not in OPERATORS:
        raise ValueError(f"planted {plant.id}: there is no operator {plant.op!r}")
    if plant.id in PLANTS:
        raise ValueError(f"planted {plant.id}: the name is taken")
    PLANTS[plant.id] = plant


def bug(op: str, sentence: str, *, check: str = "values") -> Callable[[Function], Function]:
    """Registers a function ``f(arguments) -> outputs`` that gets an operator wrong.

    Args:
        op: The operator.
        sentence: The bug, and who would ship it.
        check: The name of the check that should reject it; it runs first.

    Raises:
        ValueError: There is no such operator, or the name is taken.
    """

    def register(function: Function) -> Function:
        _add(Plant(function.__name__, op, sentence, check, function))
        return function

    return register


def misbehaviour(op: str, sentence: str, *, check: str) -> Callable[[Change], Change]:
    """Registers a function ``f(kernel) -> kernel`` that breaks another promise of a kernel than its values.

    Args:
        op, sentence, check: As for :func:`bug`.

    Raises:
        ValueError: There is no such operator, or the name is taken.
    """

    def register(change: Change) -> Change:
        _add(Plant(change.__name__, op, sentence, check, change=change))
        return change

    return register


def variant(op: str, sentence: str) -> Callable[[Function], Function]:
    """Registers a function ``f(arguments) -> outputs`` that computes an operator in another correct way.

    Args:
        op: The operator.
        sentence: What is different.

    Raises:
        ValueError: There is no such operator, or the name is taken.
    """

    def register(function: Function) -> Function:
        _add(Plant(function.__name__, op, sentence, function=function))
        return function

    return register


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
