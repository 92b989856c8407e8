"""A report in the terminal: what a run ends with, and what ``sbhal report show`` prints."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..conformance.report.claim import claim
from ..conformance.verdict.record import Report, first_line
from .refusals import plain

FAILURES_SHOWN = 10
OUTPUT_LINES = 5
WIDE = 10_000
COLOUR = {"pass": "green", "fail": "red", "partial": "yellow", "unsupported": "yellow"}


def print_summary(console: Console, found: Report) -> None:
    """Prints operators, the first broken cases, problems, counts and what may be claimed."""
    console.print(_table(console, found))
    _print_broken(console, found)
    for t in found.timings:
        if t.mistrusted:
            highest = max(t.share or 0.0, t.fresh_share or 0.0)
            what = f"{t.op} at {t.case} in {t.dtype} takes {100 * highest:.0f} % of its ceiling, {t.ceiling}"
            console.print(f"[yellow]mistrusted:[/] {plain(what)}", soft_wrap=True)
    if found.about["backend"]["simulated"]:
        console.print("[yellow]simulated:[/] nothing here was measured on the hardware that the backend stands in for")
    if not found.complete:
        console.print(f"[bold red]incomplete:[/] {plain(found.about.get('interrupted', 'not every case ran'))}")
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {plain(problem)}")
    verdict = "[bold green]PASS[/]" if found.passed else "[bold red]FAIL[/]"
    console.print(f"{verdict} {len(found.records)} cases: {found.tally}; seed {found.about['seed']}")
    console.print(f"claim: {plain(str(claim(found)))}", soft_wrap=True)


def _table(console: Console, found: Report) -> Table:
    """Operators in as many columns as fit beside their names, which are not broken."""
    rows = [
        {
            "operator": plain(s.op),
            "verdict": f"[{COLOUR[s.verdict]}]{s.verdict}[/]",
            "passed": f"{s.whole.passed} of {s.whole.total}",
            "broken": str(s.whole.broken),
            "unsupported": str(s.whole.unsupported),
            "worst": "" if s.whole.worst is None else f"{s.whole.worst:.2f}",
        }
        for s in found.operators()
    ]
    columns = ["operator", "verdict", "passed", "broken", "unsupported", "worst"]  # the last is left out first
    while True:
        table = Table(*columns, box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        if Measurement.get(console, console.options.update(width=WIDE), table).maximum <= console.width:
            return table
        if len(columns) == 2:
            table.columns[0].overflow = "fold"  # a name that ends in dots could be two operators'
            return table
        columns.pop()


def _print_broken(console: Console, found: Report) -> None:
    broken = [r for r in found.records if r.broken]
    for r in broken[:FAILURES_SHOWN]:
        first = first_line(r.message)
        last = r.output.rstrip().splitlines()[-OUTPUT_LINES:]
        lines = [plain(line) for line in (first, *(f"| {line}" for line in last), r.reproduce) if line]
        console.print(f"[red]{r.status.value}[/] {plain(r.id)}", *lines, sep="\n  ", soft_wrap=True)
    if len(broken) > FAILURES_SHOWN:
        console.print(f"and {len(broken) - FAILURES_SHOWN} more, in the report")
