"""A report as one page of HTML that needs nothing else, and what its templates share with the matrix."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ..verdict.judge import FLOOR, MAX_RATIO, RMS_RATIO, SCATTER, STATE_BOUND
from ..verdict.levels import LEVELS
from ..verdict.record import BROKEN, MOST_SHARE, Cell, Record, Report, Status, Timing, first_line, group
from .claim import claim

COLUMNS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "int16": "integer", "int8": "integer"}
SHOWN_IN_FULL = 40  # broken cases; the others keep one line, so that a page of nothing but failures can be opened
REASON_LENGTH = 160


def template(name: str, **filters: Any) -> Any:
    """A template of this package.

    Raises:
        ModuleNotFoundError: jinja2 is missing; the message names the extra to install.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the report needs jinja2: pip install "spikingbrain-hal[cli]"') from error
    folder = files(__package__)
    loader = jinja2.FunctionLoader(lambda found: folder.joinpath(found).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader, undefined=jinja2.StrictUndefined
    )
    environment.globals["most_share"] = MOST_SHARE
    environment.filters |= {"sig": _significant, "percent": lambda x: f"{100 * x:.0f} %"}
    return environment.get_template(name)


def render(report: Report) -> str:
    """The page as one string."""
    broken = [r for r in report.records if r.broken]
    by_op = group(report.records, "op")
    page: str = template("report.html.j2").render(
        report=report,
        about=report.about,
        counts=report.counts,
        claim=claim(report),
        columns=list(dict.fromkeys(column(r.dtype) for r in report.records)),
        operators=report.operators(),
        cells={op: by_column(records) for op, records in by_op.items()},
        levels=_levels(report),
        matrix=_matrix(by_op),
        cases={op: [_row(r) for r in records] for op, records in by_op.items()},
        checks=_checks(report),
        broken=broken[:SHOWN_IN_FULL],
        broken_count=len(broken),
        missing=_missing(report),
        waivers=_waivers(report),
        best=_best_timing(report),
        sources={name: o["source"] for name, o in report.about["operator_set"]["operators"].items()},
        broken_names=[s.value for s in BROKEN],
        allowed=_allowed(),
        scatter=SCATTER,
        floor=FLOOR,
        state_bits=round(-math.log2(STATE_BOUND)),
    )
    return page


def _allowed() -> dict[tuple[float, float], list[str]]:
    """The dtypes of outputs by what is allowed: multiples of the largest error and of the rms of working precision."""
    found: dict[tuple[float, float], list[str]] = {}
    for dtype, ratio in MAX_RATIO.items():
        found.setdefault((ratio, RMS_RATIO[dtype]), []).append(str(dtype).removeprefix("torch."))
    return found


def column(dtype: str) -> str:
    """The column that a dtype is shown in; a check of the whole backend has none."""
    return COLUMNS.get(dtype, dtype or "any")


def by_column(records: Sequence[Record]) -> dict[str, Cell]:
    """The records' counts by column."""
    columns = dict.fromkeys(column(r.dtype) for r in records)
    return {c: Cell.of([r for r in records if column(r.dtype) == c]) for c in columns}


def _significant(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{float(f'{value:.{digits}g}'):,.10g}"


@dataclass(frozen=True)
class _Row:
    """A case in the table of all cases."""

    check: str
    dtype: str
    case: str
    level: int
    status: str
    worst: float | None
    seconds: float
    reason: str


def _row(r: Record) -> _Row:
    check = f"{r.check}[{r.part}]" if r.part else r.check
    first = first_line(r.message)
    reason = first if len(first) <= REASON_LENGTH else f"{first[:REASON_LENGTH]}…"
    reason = f"waiver {r.waiver}: {reason}" if r.waiver else reason
    return _Row(check, r.dtype, r.case, r.level, r.status.value, r.worst, r.seconds, reason)


def _levels(report: Report) -> list[tuple[int, str, Cell]]:
    """Level, what it is about, counts."""
    return [(n, what, Cell.of([r for r in report.records if r.level == n])) for n, what in LEVELS.items()]


def _checks(report: Report) -> list[tuple[str, str, int, Cell]]:
    """Name, promise, level and counts of every check that was run, those with most cases first."""
    promises: Mapping[str, str] = report.about["checks"]
    found = group(report.records, "check")
    rows = [(name, promises.get(name, ""), records[0].level, Cell.of(records)) for name, records in found.items()]
    return sorted(rows, key=lambda row: -row[3].total)


def _matrix(by_op: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, dict[str, Cell]]]:
    """Operator, check, column."""
    return {
        op: {check: by_column(rows) for check, rows in group(records, "check").items()} for op, records in by_op.items()
    }


def _missing(report: Report) -> list[tuple[str, str, str, int]]:
    """What did not run or is not served: status, operator, reason, how many cases."""
    absent = [r for r in report.records if r.status in (Status.UNSUPPORTED, Status.NOT_RUN)]
    found = Counter((r.status.value, r.op, r.message or "no reason given") for r in absent)
    return [(*key, count) for key, count in found.items()]


@dataclass(frozen=True)
class _Waiver:
    """A waiver and what became of it; what the report does not say of it is empty."""

    id: str
    issue: str
    owner: str
    expires: str
    message: str
    cases: int
    still_fails: int


def _waivers(report: Report) -> list[_Waiver]:
    used = group([r for r in report.records if r.waiver], "waiver")
    stated = {str(w["id"]): w for w in report.about.get("waivers", {}).get("entries", [])}
    found = []
    for name in dict.fromkeys([*stated, *used]):
        w, rows = stated.get(name, {}), used.get(name, [])
        words = {key: str(w.get(key) or "") for key in ("issue", "owner", "expires", "message")}
        found.append(_Waiver(name, **words, cases=len(rows), still_fails=sum(r.status == Status.WAIVED for r in rows)))
    return found


def _best_timing(report: Report) -> Mapping[str, Timing]:
    """The first benchmark case of each operator that was timed."""
    found: dict[str, Timing] = {}
    for timing in report.timings:
        if timing.milliseconds is not None:
            found.setdefault(timing.op, timing)
    return found
