"""A run from what is asked for to the report: plan, workers, waivers, benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...backend.backend import Backend, DeviceProperties
from ...backend.plugin import undeclared
from .. import report
from ..verdict import waivers
from ..verdict.levels import LEVELS
from ..verdict.record import BACKEND, Record, Report, Status
from . import bench
from .case import Item, Selection, not_planned, plan
from .journal import Journal, differences
from .runner import NotStarted, Run, Unavailable
from .settings import Settings
from .target import Opened
from .worker import blank

LAST = max(LEVELS)
SERVED = "values"  # the check that every operator has at every dtype
Progress = Callable[[str, int], AbstractContextManager[Callable[[str, bool], None]]]


@dataclass(frozen=True)
class Options:
    """What identifies a run: one that is continued has the same.

    Attributes:
        backend: The backend's name.
        seed: Of all inputs.
        profile: ``"quick"`` or ``"full"``.
        level: The last level that is run.
        ops: Only these operators and their backwards, all if empty.
        case: Only cases whose id contains or matches this.
        modules: Imported first.
        wave: The wavefront of the simulated GPU.
        waivers: The path of a file of known failures.
        bench: Whether there is a performance section.
    """

    backend: str
    seed: int
    profile: str = "full"
    level: int = LAST
    ops: list[str] = field(default_factory=list)
    case: str = ""
    modules: list[str] = field(default_factory=list)
    wave: int | None = None
    waivers: str = ""
    bench: bool = True

    def selection(self) -> Selection:
        """Which cases are run; raises ValueError where that is unclear."""
        return Selection(self.profile, self.ops, self.case, self.level)


def conduct(
    options: Options,
    settings: Settings,
    folder: Path,
    command: str,
    earlier: Journal | None,
    waived: waivers.File | None,
    progress: Progress,
) -> tuple[Report, Journal | None]:
    """Runs what is asked for, or what is left of it.

    An interrupt ends the run; the report then holds what there was, and says so.

    Args:
        options: What to run.
        settings: Where and how.
        folder: Where the run is written down as it goes.
        command: What a person typed, for the report.
        earlier: The run that is continued.
        waived: The file of known failures.
        progress: Opened with what is counted and how many there are, and called with each one's operator and whether it
            is broken.

    Returns:
        The report, and the journal that the run was written to, still open; None if it came to nothing to write.

    Raises:
        ValueError: Nothing is left to run, a waiver isn't right, or the run that is continued was of something else.
        Unavailable: The backend isn't installed or finds no device.
    """
    started, selection = time.time(), options.selection()
    head: dict[str, Any] = {"profile": options.profile, "seed": options.seed, "command": command}
    head |= {"ops": options.ops, "case": options.case}
    early: list[str] = []  # problems from before there is anything to write them to
    with Run(settings) as run:
        run.complain = early.append
        run.start()
        items = selection.of_operators()  # while the first worker opens the backend
        try:
            opened, about = run.describe(**head)
        except NotStarted as error:
            items = selection.of_backend(Opened(options.backend, "cpu")) + items
            return _report_of_nothing(options, items, head, earlier, str(error)), earlier
        items = selection.of_backend(opened) + items
        selection.expect_some(items)
        known = _waivers(waived, opened, about)
        written = _journal(options, folder, about, earlier)
        found = Report(about, [], problems=list(written.problems))
        with progress("cases", len(items)) as advance:
            _attach(run, written, found.problems, lambda record: advance(record.op, known.judge(record).broken))
            for problem in early:
                run.complain(problem)
            run.records |= {item.id: written.records[item.id] for item in items if item.id in written.records}
            run.suspects |= written.suspects
            try:
                for record in run.records.values():
                    advance(record.op, known.judge(record).broken)
                run.finish(items)
            except KeyboardInterrupt as stop:
                about["interrupted"] = str(stop)
            except (NotStarted, Unavailable) as error:
                found.problems.append(str(error))
                about["interrupted"] = "no worker process was left"
        found.records = _judged(run.results(items, about.get("interrupted", "")), known, settings)
    about |= {"level": options.level, "not_planned": not_planned(opened), "waivers": dict(known.about)}
    found.problems += problems_of(opened, found.records)
    if options.bench and options.level >= LAST and not about["backend"]["simulated"] and found.complete:
        _time(found, options, settings, progress)  # the time of a simulation says nothing about its device
    about |= {"started": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(started))}
    about |= {"seconds": round(time.time() - started, 1), "resumed": len(written.records)}
    return found, written


def _journal(options: Options, folder: Path, about: Mapping[str, Any], earlier: Journal | None) -> Journal:
    if earlier is None:
        return Journal.begin(folder, asdict(options), about)
    changed = [d for d in differences(earlier.about, about) if not d.startswith("command ")]
    if changed:
        raise ValueError(f"cannot resume {folder}: {'; '.join(changed)}")
    return earlier


def _attach(run: Run, written: Journal, problems: list[str], show: Callable[[Record], None]) -> None:
    """Whatever comes in is written down first."""

    def keep(record: Record) -> None:
        written.add(record)
        show(record)

    def complain(problem: str) -> None:
        written.add_problem(problem)
        problems.append(problem)

    run.keep, run.doubt, run.complain = keep, written.add_suspect, complain


def _waivers(file: waivers.File | None, opened: Opened, about: Mapping[str, Any]) -> waivers.Waivers:
    if file is None:
        return waivers.Waivers()
    levels = {item.id: item.level for item in plan("full", opened=opened)}
    return waivers.load(file, opened.name, about["device"], levels)


def _judged(records: Sequence[Record], known: waivers.Waivers, settings: Settings) -> list[Record]:
    judged = [known.judge(record) for record in records]
    return [replace(r, reproduce=settings.reproduce(r.id)) if r.broken else r for r in judged]


def _report_of_nothing(
    options: Options, items: Sequence[Item], head: Mapping[str, Any], earlier: Journal | None, problem: str
) -> Report:
    """What can be said of a backend that no process survives opening: what an earlier one has left, if any has."""
    properties = DeviceProperties("unknown, as the backend does not open")
    unknown = Backend(options.backend, "unknown", "cpu", lambda: None, dict, lambda: properties)
    known = earlier.suspects | earlier.records if earlier else {}
    records = [known.get(item.id) or blank(item, problem) for item in items]
    about = report.describe(unknown, **head) | {"interrupted": "no worker process started"}
    return Report(about, records, problems=[*(earlier.problems if earlier else ()), problem])


def problems_of(opened: Opened, records: Sequence[Record]) -> list[str]:
    """A backend that offers an operator must serve it; the reason that it does not is worth a line of its own."""
    found = undeclared(opened.name, opened.offered)
    for op in dict.fromkeys(record.op for record in records if record.op != BACKEND):
        rows = [r for r in records if r.op == op and r.status != Status.NOT_RUN]
        rows = [r for r in rows if r.check == SERVED] or rows  # who refuses every call also refuses wrong ones
        if op in opened.offered and rows and all(r.status == Status.UNSUPPORTED for r in rows):
            found.append(f"the backend offers {op} but serves no case of it: {rows[0].message}")
    asked = [r for r in records if r.op != BACKEND] or records
    if not any(r.status == Status.PASS for r in asked):
        found.append("no case of an operator passed")
    return found


def _time(found: Report, options: Options, settings: Settings, progress: Progress) -> None:
    cases = list(bench.bench_cases(options.ops))
    with progress("benchmarks", len(cases)) as advance:
        try:
            found.timings = bench.run_bench(
                settings,
                torch.get_num_threads(),
                options.ops,
                lambda timing: advance(timing.op, False),
                found.problems.append,
            )
        except KeyboardInterrupt as stop:
            found.about["interrupted"] = str(stop)
