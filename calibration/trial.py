"""The suite on trial: one planted kernel after another stands in for a reference, and the quick profile judges it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from spikingbrain_hal.backend.backend import Backend, Kernel
from spikingbrain_hal.backend.python import python_backend
from spikingbrain_hal.calls import selection
from spikingbrain_hal.conformance.run.case import Item, plan
from spikingbrain_hal.conformance.run.target import open_target
from spikingbrain_hal.conformance.run.worker import Session
from spikingbrain_hal.conformance.verdict.judge import Ratios, watched
from spikingbrain_hal.conformance.verdict.record import Record, Status
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.errors import UnsupportedOp

from .planted import Plant

NAME = "planted"
LONGEST = (  # tried last, and variants only at the first seed
    *("repeated", "split", "arguments", "strides", "guard_pages"),
    *("poisoned", "threads", "opcheck", "compiled", "inductor"),
)
CLASSES = {torch.float32: "float32", torch.bfloat16: "16-bit", torch.float16: "16-bit"}


@dataclass(frozen=True)
class Errors:
    """The largest errors of some outputs, as :class:`~spikingbrain_hal.conformance.verdict.judge.Ratios` has them."""

    share: float = 0.0
    maximum: float = 0.0
    rms: float = 0.0

    def add(self, other: Errors | Ratios) -> Errors:
        """The larger of each."""
        return Errors(max(self.share, other.share), max(self.maximum, other.maximum), max(self.rms, other.rms))


@dataclass(frozen=True)
class Verdict:
    """What became of one plant at one seed.

    Attributes:
        plant: The plant's id.
        seed: Of all inputs.
        ran: How many cases ran.
        record: The first that did not pass, if one did not.
        accident: What the planted code itself raised there: it is broken as a plant then, and nothing is shown.
        errors: The largest of each ratio, by ``"float32"`` or ``"16-bit"``.
    """

    plant: str
    seed: int
    ran: int
    record: Record | None
    accident: str = ""
    errors: Mapping[str, Errors] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        """Whether the suite found it wrong."""
        return self.record is not None and self.record.broken and not self.accident


class Trial:
    """A backend over the references with a place for one plant; use :func:`open_trial`.

    Plants of one operator are best tried in a row: they share the oracle's results.
    """

    def __init__(self) -> None:
        self.plain = dict(python_backend(NAME).load())
        self.op, self.planted = "", next(iter(self.plain.values()))
        self.accident = ""
        self.session: Session

    def kernels(self) -> dict[str, Kernel]:
        """One an operator; that of the plant's operator behaves as the plant."""
        return {op: self._kernel(op, plain) for op, plain in self.plain.items()}

    def _kernel(self, op: str, plain: Kernel) -> Kernel:
        count = len(OPERATORS[op].arguments)

        def plan(*args: Any) -> int:
            return (self.planted if op == self.op else plain).plan(*args)

        def launch(*args: Any) -> None:
            try:
                (self.planted if op == self.op else plain).launch(*args)
            except UnsupportedOp:
                raise
            except Exception as error:
                if _is_legal(op, args[:count]):
                    self.accident = f"{type(error).__name__}: {error}"
                raise

        return Kernel(plan, launch, plain.version)

    def judge(self, plant: Plant, checks: Iterable[str] = (), to_the_end: bool = False) -> Verdict:
        """Runs the quick profile of the plant's operator up to the first case that does not pass.

        Args:
            plant: The plant; the check that should reject it runs first.
            checks: Only these checks; all if empty.
            to_the_end: Go on behind a rejection, to measure errors in all cases.
        """
        self.op, self.planted = plant.op, _planted(plant, self.plain[plant.op])
        errors: dict[str, Errors] = {}
        first: Verdict | None = None

        def note(ratios: Ratios) -> None:
            kind = CLASSES[ratios.dtype]
            errors[kind] = errors.get(kind, Errors()).add(ratios)

        wanted = tuple(checks)
        items = [item for item in _items(plant.op) if not wanted or item.check in wanted]
        for ran, item in enumerate(sorted(items, key=lambda i: _turn(i, plant)), 1):
            self.accident = ""
            with watched(note):
                record = self.session.run(item)
            if record.status != Status.PASS and first is None:
                first = Verdict(plant.id, self.session.seed, ran, record, self.accident, errors)
                if not to_the_end:
                    break
        return first or Verdict(plant.id, self.session.seed, len(items), None, errors=errors)


def _turn(item: Item, plant: Plant) -> int:
    return 0 if item.check == plant.check else 2 if item.check in LONGEST else 1


def _is_legal(op: str, args: tuple[Any, ...]) -> bool:
    """Whether a call is a legal one, whose errors are the kernel's own."""
    try:
        OPERATORS[op].check_contents(args)
    except Exception:
        return False
    return True


@cache
def _items(op: str) -> tuple[Item, ...]:
    """The quick profile of one operator, without its backward."""
    return tuple(item for item in plan("quick", [op]) if item.op == op)


def _planted(plant: Plant, plain: Kernel) -> Kernel:
    """The plant as a kernel."""
    if plant.change is not None:
        return plant.change(plain)
    function, spec = plant.function, OPERATORS[plant.op]
    assert function is not None
    return python_backend(NAME, {plant.op: lambda *args: function(spec.bind(args))}).load()[plant.op]


@contextmanager
def open_trial(seed: int) -> Iterator[Trial]:
    """Registers and selects the backend for as long as the trial lasts.

    Args:
        seed: Chooses all inputs.
    """
    trial = Trial()
    plain = python_backend(NAME)
    selection.register_backend(
        Backend(NAME, "the conformance suite", "cpu", plain.probe, trial.kernels, plain.properties, simulated=True)
    )
    try:
        with selection.use_backend(NAME):
            trial.session = Session(open_target(NAME), seed)
            yield trial
    finally:
        selection.unregister_backend(NAME)
