"""What a run leaves behind: one record a case, and what can be said about an operator from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

FORMAT = 3  # of report.json; another number when a key changes its meaning


class Status(str, Enum):
    """How a case ended."""

    PASS = "pass"
    FAIL = "fail"
    CRASH = "crash"  # the worker process died
    TIMEOUT = "timeout"
    DEVICE_LOST = "device_lost"  # the device answers no more; a new process is needed
    LIED = "lied"  # one way of calling a kernel serves what another calls unsupported
    UNSUPPORTED = "unsupported"  # a legal call that the backend says it does not serve
    WAIVED = "waived"  # fails, as a waiver expects
    XPASS = "xpass"  # passes, although a waiver says that it fails
    NOT_RUN = "not_run"


MOST_SHARE = 1.05  # of its ceiling that a time is trusted with
BACKEND = "backend"  # the operator of the records of checks of the whole backend
BROKEN = (Status.FAIL, Status.CRASH, Status.TIMEOUT, Status.DEVICE_LOST, Status.LIED, Status.XPASS)


@dataclass(frozen=True)
class Record:
    """The result of one case.

    Attributes:
        id: The case's id.
        op, check, part, dtype, case: Its pieces; a check of the whole backend has the operator ``"backend"``.
        status: How it ended.
        seconds: How long it took.
        worst: The worst error as a fraction of what is allowed, where errors were measured.
        excused: Decisions that differ from the exact ones and that rounding explains.
        excluded: Elements that were not compared because a derivative jumps there.
        message: Why it did not pass.
        reproduce: The command that runs this case alone, for one that is broken.
        level: Of its check, 0 to 5.
        waiver: The id of the waiver that applies to it, if one does.
        output: The last that its process printed, for a case that cost the process.
    """

    id: str
    op: str
    check: str
    part: str
    dtype: str
    case: str
    status: Status
    seconds: float = 0.0
    worst: float | None = None
    excused: int = 0
    excluded: int = 0
    message: str = ""
    reproduce: str = ""
    level: int = 2
    waiver: str = ""
    output: str = ""

    @property
    def broken(self) -> bool:
        """Whether this fails a run."""
        return self.status in BROKEN

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``report.json`` and ``results.jsonl`` have it."""
        return asdict(self) | {"status": self.status.value}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """The record that :meth:`as_dict` was made of."""
        return Record(**{**data, "status": Status(data["status"])})


def first_line(text: str) -> str:
    """What a message says at once, empty for an empty one."""
    return next(iter(text.splitlines()), "")


@dataclass(frozen=True)
class Timing:
    """How fast one operator ran at one of its benchmark cases.

    Attributes:
        op, case, dtype: What ran.
        milliseconds: Median time of a launch into outputs that were there before.
        gflops, gbytes_per_s: Rates by the declared work and the size of the tensors.
        share: Median of the times that the ceiling allows over the times taken, each of the same moment.
        bound: What limits it, ``"compute"`` or ``"memory"``; empty where its ceiling is not known.
        message: Why it was not timed.
        ceiling: What it took turns with, ``"float32 products"`` or ``"copy"``; empty where there is no ceiling.
        peak: The rate of that beside it, in GFLOP/s or GB/s.
        spread: The least and the largest share of a pair.
        fresh_milliseconds, fresh_share: The same with outputs taken for each call, beside a copy into fresh memory;
            only of what memory limits.
    """

    op: str
    case: str
    dtype: str
    milliseconds: float | None = None
    gflops: float | None = None
    gbytes_per_s: float | None = None
    share: float | None = None
    bound: str = ""
    message: str = ""
    ceiling: str = ""
    peak: float | None = None
    spread: tuple[float, float] | None = None
    fresh_milliseconds: float | None = None
    fresh_share: float | None = None

    @property
    def mistrusted(self) -> bool:
        """Whether it ran faster than its ceiling: one of the two was disturbed, or is no ceiling for it."""
        return max(self.share or 0.0, self.fresh_share or 0.0) > MOST_SHARE

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``report.json`` has it."""
        return asdict(self) | {"mistrusted": self.mistrusted}


@dataclass
class Report:
    """A whole run.

    Attributes:
        about: Backend, device, versions, commit, profile, seed, command: what was run on what.
        records: One a case.
        timings: The performance section.
        problems: What is wrong beyond single cases.
    """

    about: dict[str, Any]
    records: list[Record]
    timings: list[Timing] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Cases by status, every status named."""
        found = Counter(r.status for r in self.records)
        return {status.value: found[status] for status in Status}

    @property
    def tally(self) -> str:
        """The counts in words, of statuses that some case has."""
        return ", ".join(f"{n} {status}" for status, n in self.counts.items() if n)

    @property
    def passed(self) -> bool:
        """Whether the run shows what it set out to show: all of it ran, something passed, and nothing is broken."""
        broken = self.problems or any(r.broken for r in self.records)
        return self.complete and not broken and self.counts["pass"] > 0

    @property
    def complete(self) -> bool:
        """Whether the run came to its end: of one that was interrupted, or lost its workers, cases are missing."""
        return "interrupted" not in self.about

    def operators(self) -> list[Summary]:
        """One summary an operator, in the order of the records."""
        return [Summary.of(op, rows) for op, rows in group(self.records, "op").items()]

    def as_dict(self) -> dict[str, Any]:
        """Plain data with stable keys, as ``report.json`` has it."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            "complete": self.complete,
            **self.about,
            "counts": self.counts,
            "problems": self.problems,
            "operators": [asdict(s) for s in self.operators()],
            "cases": [r.as_dict() for r in self.records],
            "bench": {"timings": [t.as_dict() for t in self.timings]},
        }


def group(records: Iterable[Record], key: str) -> dict[str, list[Record]]:
    """Records by one of their fields, in order of first appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(getattr(record, key), []).append(record)
    return found


@dataclass(frozen=True)
class Cell:
    """An operator at one dtype, or as a whole."""

    total: int
    passed: int
    broken: int
    unsupported: int
    not_run: int
    worst: float | None

    @staticmethod
    def of(records: Sequence[Record]) -> Cell:
        """Counts records; the worst error is over those that passed or failed by it."""
        count = Counter(r.status for r in records)
        errors = [r.worst for r in records if r.worst is not None]
        return Cell(
            total=len(records),
            passed=count[Status.PASS],
            broken=sum(count[s] for s in BROKEN),
            unsupported=count[Status.UNSUPPORTED],
            not_run=count[Status.NOT_RUN],
            worst=max(errors) if errors else None,
        )

    @property
    def verdict(self) -> str:
        """``pass`` only where every case passed."""
        if self.broken:
            return "fail"
        if self.passed == self.total:
            return "pass"
        return "unsupported" if not self.passed and self.unsupported else "partial"


@dataclass(frozen=True)
class Summary:
    """One operator of a run: as a whole, and for each dtype."""

    op: str
    verdict: str
    whole: Cell
    dtypes: dict[str, Cell]

    @staticmethod
    def of(op: str, records: Sequence[Record]) -> Summary:
        """Sums up an operator's records."""
        whole = Cell.of(records)
        cells = {dtype: Cell.of(rows) for dtype, rows in group(records, "dtype").items()}
        return Summary(op, whole.verdict, whole, cells)
