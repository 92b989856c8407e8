"""The levels of the suite, and what a run shows: the highest level reached, and how many operators of the set pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .mustpass import OPERATOR_SET, MustPass
from .record import BACKEND, Record, Report, Status, group

LEVELS = {
    0: "load and manifest",
    1: "device",
    2: "forward values",
    3: "gradients, adversarial values and shapes, re-run, state contracts",
    4: "torch",
    5: "model blocks and performance",
}
FORWARD, GRADIENTS = 2, 3


@dataclass(frozen=True)
class Standing:
    """What a badge says.

    Attributes:
        level: The highest level reached, None for none.
        operator_set: The version of the operator set that the operators are counted of.
        operators: The operators of the set that pass.
        of: How many operators the set has.
        waivers: The ids of the waivers that cases of the run needed.
    """

    level: int | None
    operator_set: int
    operators: tuple[str, ...]
    of: int
    waivers: tuple[str, ...]


def reached(records: Sequence[Record], gaps: bool = False) -> int | None:
    """The highest level such that there and at every level below something passed and nothing is broken.

    A case that is unsupported, waived, or that a check says cannot be made here, holds no level back: how much is
    served is what the operators are counted for. Nothing of the kind can be said of a run that isn't complete.

    Args:
        records: Of a run.
        gaps: Levels without a record are passed over, as a backward operator has none at the level of forward values.
    """
    found = None
    for level in LEVELS:
        rows = [r for r in records if r.level == level]
        if not rows and gaps:
            continue
        if not any(r.status == Status.PASS for r in rows) or any(r.broken for r in rows):
            break
        found = level
    return found


def operator_levels(records: Sequence[Record]) -> dict[str, int | None]:
    """The level that each operator of a run reaches, what is asked of the whole backend included."""
    rows = group(records, "op")
    shared = rows.pop(BACKEND, [])
    return {op: reached([*shared, *own], gaps=True) for op, own in rows.items()}


def standing(report: Report, operator_set: int = OPERATOR_SET) -> Standing:
    """What a run shows as a whole.

    An operator passes if each case of its must-pass list did, nothing else of it is broken, and none of it is waived.
    The level is that of the whole run; there is none if the run isn't complete.
    """
    listed, records = MustPass.load(operator_set), report.records
    rows = group(records, "op")
    passing = tuple(op for op in listed.operators if _passes(listed.ids(op), rows.get(op, [])))
    return Standing(
        level=reached(records) if report.complete else None,
        operator_set=operator_set,
        operators=passing,
        of=len(listed.operators),
        waivers=tuple(sorted({r.waiver for r in records if r.status == Status.WAIVED})),
    )


def _passes(must: Sequence[str], rows: Sequence[Record]) -> bool:
    passed = {r.id for r in rows if r.status == Status.PASS}
    return passed.issuperset(must) and not any(r.broken or r.status == Status.WAIVED for r in rows)
