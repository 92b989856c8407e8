"""``sbhal conformance``: run the suite on one backend and write the report."""

from __future__ import annotations

import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..conformance import bench, report, runner
from ..conformance.case import PROFILES, Item, plan
from ..conformance.record import Record, Report, Status
from ..conformance.target import Target, open_target
from ..errors import BackendUnavailable

SECONDS_BETWEEN_LINES = 10.0
FAILURES_SHOWN = 10
COLOUR = {"pass": "green", "fail": "red", "partial": "yellow", "unsupported": "yellow"}


def conformance(
    backend: Annotated[str, typer.Option(help="The backend to test.")],
    op: Annotated[list[str] | None, typer.Option(help="Only this operator and its backward; repeatable.")] = None,
    profile: Annotated[str, typer.Option(help="quick or full.")] = "full",
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and junit.xml.")] = Path("out/report"),
    seed: Annotated[int | None, typer.Option(help="Chooses all inputs; a new one each run if absent.")] = None,
    case: Annotated[str, typer.Option(help="Only cases whose id is, contains or matches this.")] = "",
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Leave the performance section out.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes at once; one a core, up to 4.")] = None,
    wave: Annotated[int | None, typer.Option(help="Wavefront of the sim backend, 32 or 64.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one case may take.")] = runner.CASE_TIMEOUT,
    modules: Annotated[
        list[str] | None, typer.Option("--import", help="Python module that registers the backend; repeatable.")
    ] = None,
) -> None:
    """Test a backend against the float64 oracle and every other promise, and write a report.

    Exits with 0 if nothing is broken and something passed, with 1 if not, with 2 if nothing could be run.
    """
    console = Console()
    try:
        _set_environment(backend, wave)
        items = _plan(profile, op or [], case)
        for module in modules or []:
            import_module(module)
        target = open_target(backend)
    except (ValueError, BackendUnavailable, ModuleNotFoundError) as error:
        console.print(f"[bold red]nothing was run:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    settings = runner.Settings(
        backend=backend,
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        jobs=jobs or runner.default_jobs(),
        modules=tuple(modules or []),
        timeout=timeout,
    )
    found = _run(console, items, settings, target, profile)
    if not no_bench and not target.backend.simulated:  # the time of a simulation says nothing about its device
        os.environ["SBHAL_CHECK"] = "0"
        _time(console, found, settings, op or [])
    _show(console, found)
    for kind, path in report.write(found, out).items():
        console.print(f"{kind}: {path}", soft_wrap=True)
    raise typer.Exit(0 if found.passed else 1)


def _set_environment(backend: str, wave: int | None) -> None:
    """What the backend and the worker processes read; set before anything native is loaded."""
    os.environ.setdefault("SBHAL_CHECK", "1")
    if wave is None:
        return
    if backend != "sim":
        raise ValueError(f"--wave is for the sim backend, not for {backend}")
    os.environ["SBHAL_SIM_WAVE"] = str(wave)


def _plan(profile: str, ops: Sequence[str], case: str) -> list[Item]:
    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r}; there are {', '.join(PROFILES)}")
    return plan(profile, ops, case)


def _run(console: Console, items: list[Item], settings: runner.Settings, target: Target, profile: str) -> Report:
    console.print(
        f"{len(items)} cases on backend {settings.backend}, profile {profile}, seed {settings.seed}, "
        f"{settings.jobs} worker{'s' * (settings.jobs > 1)}"
    )
    started = time.time()
    about = report.describe(target.backend, profile, settings.seed, shlex.join(["sbhal", *sys.argv[1:]]))
    with _progress(console, "cases", len(items)) as advance:
        records = runner.run(items, settings, lambda record: advance(record.op, record.broken))
    about |= {"started": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(started))}
    about |= {"seconds": round(time.time() - started, 1)}
    return Report(about, records, problems=problems_of(target, items, records))


def problems_of(target: Target, items: Sequence[Item], records: Sequence[Record]) -> list[str]:
    """A backend that offers an operator must serve it; the reason that it does not is worth a line of its own."""
    found = []
    for op in dict.fromkeys(item.op for item in items):
        rows = [r for r in records if r.op == op]
        if op in target.offered and all(r.status == Status.UNSUPPORTED for r in rows):
            found.append(f"the backend offers {op} but serves no case of it: {rows[0].message}")
    if not any(r.status == Status.PASS for r in records):
        found.append("no case passed")
    return found


def _time(console: Console, found: Report, settings: runner.Settings, ops: Sequence[str]) -> None:
    cases = list(bench.bench_cases(ops))
    with _progress(console, "benchmarks", len(cases)) as advance:
        found.roofline, found.timings = bench.run_bench(
            settings, torch.get_num_threads(), ops, lambda timing: advance(timing.op, False)
        )


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[str, bool], None]]:
    """A bar on a terminal, now and then a line elsewhere."""
    done, broken, spoken = 0, 0, time.monotonic()
    bar = Progress(
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )

    def advance(name: str, failed: bool) -> None:
        nonlocal done, broken, spoken
        done, broken = done + 1, broken + failed
        if console.is_terminal:
            bar.update(task, completed=done, description=f"{name[:24]}{f' {broken} broken' if broken else ''}")
        elif done == total or time.monotonic() - spoken > SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            console.print(f"{done} of {total} {what} done, {broken} broken, at {name}")

    task = bar.add_task(what, total=total)
    if console.is_terminal:
        with bar:
            yield advance
    else:
        yield advance


def _show(console: Console, found: Report) -> None:
    table = Table("operator", "verdict", "passed", "worst / allowed", "broken", "unsupported")
    for s in found.operators():
        worst = "" if s.whole.worst is None else f"{s.whole.worst:.2f}"
        verdict = f"[{COLOUR[s.verdict]}]{s.verdict}[/]"
        row = (f"{s.whole.passed} of {s.whole.total}", worst, str(s.whole.broken), str(s.whole.unsupported))
        table.add_row(s.op, verdict, *row)
    console.print(table)
    broken = [r for r in found.records if r.broken]
    for r in broken[:FAILURES_SHOWN]:
        first = r.message.splitlines()[0] if r.message else ""
        console.print(
            f"[red]{r.status.value}[/] {escape(r.id)}\n  {escape(first)}\n  {escape(r.reproduce)}", soft_wrap=True
        )
    if len(broken) > FAILURES_SHOWN:
        console.print(f"and {len(broken) - FAILURES_SHOWN} more, in the report")
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}")
    counts = ", ".join(f"{n} {status}" for status, n in found.counts.items() if n)
    verdict = "[bold green]PASS[/]" if found.passed else "[bold red]FAIL[/]"
    console.print(f"{verdict} {len(found.records)} cases: {counts}; seed {found.about['seed']}")
