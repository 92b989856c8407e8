"""Two reports side by side: every change, for better or worse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..verdict.record import Record, Report, Status, Timing

FACTOR = 2.0
NOT_COMPARED = ("started", "seconds", "command")  # two runs of the same thing differ in them
_RANK = {Status.PASS: 3, Status.WAIVED: 2, Status.UNSUPPORTED: 1, Status.NOT_RUN: 1}


@dataclass(frozen=True)
class Change:
    """One case that both reports have, and one way in which it differs.

    Attributes:
        id: The case's id.
        what: The field that differs.
        verdict: ``"better"``, ``"worse"``, or ``"other"`` where that cannot be said.
        a, b: Its values.
    """

    id: str
    what: str
    verdict: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Timed:
    """The times of one benchmark case in milliseconds; None where it was not timed."""

    id: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Difference:
    """All that differs between two reports.

    Attributes:
        factor: Worst errors are compared up to this.
        about: What was run on what: the key, and its value in each; None where it has none.
        changes: Of cases that both have.
        only_a, only_b: Ids of cases that one has.
        timings: Every benchmark case of both; that a time differs is no change, that one is missing is.
    """

    factor: float
    about: dict[str, tuple[Any, Any]]
    changes: list[Change]
    only_a: list[str]
    only_b: list[str]
    timings: list[Timed]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        timed = all((t.a is None) == (t.b is None) for t in self.timings)
        return timed and not (self.about or self.changes or self.only_a or self.only_b)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it."""
        return {"format": 1, "same": self.same, **asdict(self)}


def difference(a: Report, b: Report, factor: float = FACTOR) -> Difference:
    """Compares two reports.

    Args:
        a, b: The earlier and the later one, or two backends.
        factor: A worst error counts as changed when one is more than this many times the other.

    Raises:
        ValueError: The factor is below 1.
    """
    if not factor >= 1:
        raise ValueError(f"the factor is {factor}, expected a number of at least 1")
    ours, theirs = {r.id: r for r in a.records}, {r.id: r for r in b.records}
    return Difference(
        factor=factor,
        about=_about(a, b),
        changes=[c for id in ours if id in theirs for c in _changes(ours[id], theirs[id], factor)],
        only_a=[id for id in ours if id not in theirs],
        only_b=[id for id in theirs if id not in ours],
        timings=_timings(a.timings, b.timings),
    )


def _about(a: Report, b: Report) -> dict[str, tuple[Any, Any]]:
    ours, theirs = dict(_flat(_compared(a))), dict(_flat(_compared(b)))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def _compared(report: Report) -> dict[str, Any]:
    about = {key: value for key, value in report.about.items() if key not in NOT_COMPARED}
    about["builds"] = {b["module"]: b for b in about.get("builds", [])}
    return {"passed": report.passed, "complete": report.complete, "problems": report.problems, **about}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _changes(a: Record, b: Record, factor: float) -> Iterator[Change]:
    if a.status != b.status:
        ranks = _RANK.get(a.status, 0), _RANK.get(b.status, 0)
        verdict = "other" if ranks[0] == ranks[1] else "better" if ranks[1] > ranks[0] else "worse"
        yield Change(a.id, "status", verdict, a.status.value, b.status.value)
    if not _alike(a.worst, b.worst, factor):
        known = a.worst is not None and b.worst is not None
        yield Change(a.id, "worst", _by_size(a.worst, b.worst) if known else "other", a.worst, b.worst)
    for what in ("excused", "excluded"):
        x, y = getattr(a, what), getattr(b, what)
        if x != y:
            yield Change(a.id, what, _by_size(x, y), x, y)
    for what in ("level", "waiver", "message"):
        x, y = getattr(a, what), getattr(b, what)
        if x != y:
            yield Change(a.id, what, "other", x, y)


def _by_size(a: Any, b: Any) -> str:
    return "worse" if b > a else "better"


def _alike(a: float | None, b: float | None, factor: float) -> bool:
    if a is None or b is None:
        return a is b
    small, large = sorted((a, b))
    return large <= factor * small or math.isclose(large, small)


def _timings(a: list[Timing], b: list[Timing]) -> list[Timed]:
    ours, theirs = _by_id(a), _by_id(b)
    return [Timed(id, ours.get(id), theirs.get(id)) for id in dict.fromkeys([*ours, *theirs])]


def _by_id(timings: list[Timing]) -> dict[str, float | None]:
    return {f"{t.op}/{t.dtype}/{t.case}": t.milliseconds for t in timings}
