"""The checks: each a small function that tests one promise on one case, and says where the promise applies.

A check raises Mismatch, or any other error, where the promise is broken, and returns what it measured otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor

from ...declare.axes import pair_axes
from ...declare.inputs import io_dtypes, make_inputs
from ...declare.registry import OPERATORS
from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..run.target import Opened, Target
from ..verdict.judge import Judgement, judge
from ..verdict.oracle import reference_truth, truth
from ..verdict.truth import Named, each


@dataclass
class Context:
    """One operator at one case, dtype and seed on the backend under test.

    Attributes:
        target: The backend.
        spec: The operator.
        case: Its sizes and attributes.
        dtype: Of the first input.
        seed: Of the whole run.
        part: Which part of the check, for those that have several.
        known: Inputs and truths made so far; checks of one case share them, as the oracle is slow.
    """

    target: Target
    spec: OpSpec
    case: Case
    dtype: torch.dtype
    seed: int
    part: str = ""
    known: dict[Any, Any] = field(default_factory=dict)

    def args(self, alternative: bool = False) -> list[Any]:
        """The arguments of the case, tensors fresh for the caller to change."""
        device = self.target.device
        made = self._once(
            ("args", alternative),
            lambda: make_inputs(self.spec, self.case, self.dtype, self.seed, device, alternative),
        )
        return each(made, Tensor.clone)

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        full = (self.spec.name, self.case.id, self.dtype, *key)
        if full not in self.known:
            self.known[full] = make()
        return self.known[full]

    def call(self, args: Sequence[Any]) -> Named:
        """Runs the operator under test."""
        return self.target.call(self.spec, args)

    def judge(self, outputs: Named, args: Sequence[Any] | None = None, tag: str = "") -> Judgement:
        """Compares results with the oracle, for the case's own arguments or those that ``tag`` stands for."""
        given = self.args() if args is None else args
        if properties_of(self.spec).replay:
            return judge(self.spec, truth(self.spec, given, outputs), outputs)
        return judge(self.spec, self._once(("truth", tag), lambda: reference_truth(self.spec, given)), outputs)

    def replaced(self, args: Sequence[Any], **values: Any) -> list[Any]:
        """The arguments with some replaced."""
        return list((self.spec.bind(args) | values).values())


@dataclass
class BackendContext:
    """The backend under test, for a check that is of no one operator.

    Attributes:
        target: The backend.
        seed: Of the whole run.
        part: Which part of the check, for those that have several: an operator's name for most.
        modules: What a new process imports first for the backend to be known.
    """

    target: Target
    seed: int
    part: str = ""
    modules: tuple[str, ...] = ()

    @property
    def spec(self) -> OpSpec:
        """The operator that the part names."""
        return OPERATORS[self.part]

    def args(self, seed: int = 0) -> list[Any]:
        """The arguments of the operator's first case at its first dtype, other ones for another ``seed``."""
        case = next(c for c in self.spec.cases if has_elements(self.spec, c))
        return make_inputs(self.spec, case, None, self.seed + seed, self.target.device)

    def call(self, args: Sequence[Any]) -> Named:
        """Runs that operator."""
        return self.target.call(self.spec, args)


Run = Callable[[Context], Judgement | None]
Applies = Callable[[OpSpec, Case], bool]


@dataclass(frozen=True)
class Check:
    """A promise and how it is tested.

    Attributes:
        name: Short, in the case's id.
        promise: One sentence for the report.
        level: Of the suite, see :data:`spikingbrain_hal.conformance.verdict.levels.LEVELS`.
        run: Tests it.
        applies: Whether a case can show it, by what the operator declares.
        every_dtype: Run at every dtype, else at the first.
        limit: How many of the fitting cases each operator runs, in the quick and in the full profile; None for all.
        parts: Splits a case into several of its own.
    """

    name: str
    promise: str
    level: int
    run: Run
    applies: Applies
    every_dtype: bool
    limit: Mapping[str, int | None]
    parts: Callable[[OpSpec, Case], Sequence[str]]


@dataclass(frozen=True)
class BackendCheck:
    """A promise of the whole backend and how it is tested.

    Attributes:
        name, promise, level: As of a :class:`Check`.
        run: Tests it.
        absent: Why a backend cannot show it; empty for one that can.
        parts: Splits it, by operator for most.
    """

    name: str
    promise: str
    level: int
    run: Callable[[BackendContext], None]
    absent: Callable[[Opened], str]
    parts: Callable[[Opened], Sequence[str]]


CHECKS: dict[str, Check] = {}
BACKEND_CHECKS: dict[str, BackendCheck] = {}


def has_elements(spec: OpSpec, case: Case) -> bool:
    """Whether no axis of a case is empty: what a zero-size case shows, ``values`` has shown."""
    return all(0 not in (size if isinstance(size, tuple) else (size,)) for size in case.sizes.values())


def is_legal(spec: OpSpec, case: Case) -> bool:
    """Whether the declaration accepts a case that was made up."""
    forward = spec.forward or spec
    try:
        forward.check(make_inputs(forward, case, io_dtypes(forward)[0]))
    except (ValueError, TypeError, ZeroDivisionError):
        return False
    return True


def axes_of(spec: OpSpec, name: str, tensor: Tensor) -> list[str]:
    """The axis names of an input or output, one for each dimension; those of ``...`` are all called that."""
    axes = spec.inputs[name].axes if name in spec.inputs else ""
    if name not in spec.inputs:
        output = spec.outputs[name]
        axes = spec.inputs[output.like].axes if output.like else output.axes
    options = [option.split() for option in axes.split("|")]
    names = next(o for o in options if len(o) == tensor.dim() or "..." in o)
    return [axis for axis, size in pair_axes(names, tuple(tensor.shape)) for _ in _each(axis, size)]


def _each(axis: str, size: Any) -> Sequence[Any]:
    return size if axis == "..." else (size,)


def slice_axis(spec: OpSpec, args: Sequence[Any], axis: str, start: int, stop: int) -> list[Any]:
    """The arguments with every tensor that has this axis cut to [start, stop) along it."""
    cut = []
    for name, value in zip(spec.arguments, args, strict=True):
        if isinstance(value, Tensor) and axis in axes_of(spec, name, value):
            value = value.narrow(axes_of(spec, name, value).index(axis), start, stop - start)
        cut.append(value)
    return cut


def check(
    promise: str,
    *,
    level: int,
    applies: Applies = has_elements,
    every_dtype: bool = False,
    quick: int | None = 1,
    full: int | None = None,
    parts: Callable[[OpSpec, Case], Sequence[str]] = lambda spec, case: ("",),
) -> Callable[[Run], Run]:
    """Registers a check under its function's name."""

    def register(run: Run) -> Run:
        name = getattr(run, "__name__", "")
        CHECKS[name] = Check(name, promise, level, run, applies, every_dtype, {"quick": quick, "full": full}, parts)
        return run

    return register


def backend_check(
    promise: str,
    *,
    level: int,
    absent: Callable[[Opened], str] = lambda opened: "",
    parts: Callable[[Opened], Sequence[str]] = lambda opened: ("",),
) -> Callable[[Callable[[BackendContext], None]], Callable[[BackendContext], None]]:
    """Registers a check of the whole backend under its function's name."""

    def register(run: Callable[[BackendContext], None]) -> Callable[[BackendContext], None]:
        name = getattr(run, "__name__", "")
        BACKEND_CHECKS[name] = BackendCheck(name, promise, level, run, absent, parts)
        return run

    return register


def served(opened: Opened) -> Sequence[str]:
    """The parts of a backend check that has one for each operator with a kernel."""
    return opened.served


def promise_of(check: str) -> str:
    """What a check of this name tests, in a sentence."""
    return (CHECKS.get(check) or BACKEND_CHECKS[check]).promise


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
