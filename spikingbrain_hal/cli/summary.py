"""A report in the terminal: what a run ends with, and what ``sbhal report show`` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..conformance.record import Report, first_line
from ..conformance.report.claim import claim
from .refusals import plain

FAILURES_SHOWN = 10
OUTPUT_LINES = 5
COLOUR = {"pass": "green", "fail": "red", "partial": "yellow", "unsupported": "yellow"}


def print_summary(console: Console, found: Report) -> None:
    """Prints operators, the first broken cases, problems, counts and what may be claimed."""
    table = Table("operator", "verdict", "passed", "worst / allowed", "broken", "unsupported")
    table.columns[0].overflow = "fold"  # a name that ends in dots could be two operators'
    for s in found.operators():
        worst = "" if s.whole.worst is None else f"{s.whole.worst:.2f}"
        verdict = f"[{COLOUR[s.verdict]}]{s.verdict}[/]"
        row = (f"{s.whole.passed} of {s.whole.total}", worst, str(s.whole.broken), str(s.whole.unsupported))
        table.add_row(plain(s.op), verdict, *row)
    console.print(table)
    _print_broken(console, found)
    if found.about["backend"]["simulated"]:
        console.print("[yellow]simulated:[/] nothing here was measured on the hardware that the backend stands in for")
    if not found.complete:
        console.print(f"[bold red]incomplete:[/] {plain(found.about.get('interrupted', 'not every case ran'))}")
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {plain(problem)}")
    verdict = "[bold green]PASS[/]" if found.passed else "[bold red]FAIL[/]"
    console.print(f"{verdict} {len(found.records)} cases: {found.tally}; seed {found.about['seed']}")
    console.print(f"claim: {plain(str(claim(found)))}", soft_wrap=True)


def _print_broken(console: Console, found: Report) -> None:
    broken = [r for r in found.records if r.broken]
    for r in broken[:FAILURES_SHOWN]:
        first = first_line(r.message)
        last = r.output.rstrip().splitlines()[-OUTPUT_LINES:]
        lines = [plain(line) for line in (first, *(f"| {line}" for line in last), r.reproduce) if line]
        console.print(f"[red]{r.status.value}[/] {plain(r.id)}", *lines, sep="\n  ", soft_wrap=True)
    if len(broken) > FAILURES_SHOWN:
        console.print(f"and {len(broken) - FAILURES_SHOWN} more, in the report")
