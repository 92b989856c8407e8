"""``sbhal report``: what can be done with the reports of runs: show, compare, verify, and draw them."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..conformance.report import bundle, read
from ..conformance.report.badge import badge_json, badge_svg
from ..conformance.report.claim import claim
from ..conformance.report.diff import FACTOR, NOT_COMPARED, Change, Difference, difference
from ..conformance.report.matrix import matrix as matrix_page
from .refusals import plain, refusals
from .summary import print_summary

report = typer.Typer(
    help="Show, compare, verify and draw the reports of runs: report.json, a run's folder, or its bundle.",
    no_args_is_help=True,
)
Source = Annotated[Path, typer.Argument(help="report.json, the folder of a run, or its bundle.")]
VERDICT_COLOUR = {"better": "green", "worse": "red", "other": "yellow"}


@report.command()
def show(source: Source) -> None:
    """Print a report as the run did.

    Exits as the run did: with 0 if it passed, else with 1; with 2 if there is no report to read.
    """
    with refusals():
        found = read(source)
    about, console = found.about, Console()
    console.print(
        plain(
            f"{about['backend']['name']} on {about['device']['name']}, profile {about['profile']}, "
            f"spikingbrain-hal {about['package']['version']}, torch {about['torch']}, "
            f"{about.get('started', 'at an unknown time')}"
        ),
        soft_wrap=True,
    )
    print_summary(console, found)
    raise typer.Exit(0 if found.passed else 1)


@report.command()
def verify(
    source: Annotated[Path, typer.Argument(help="A bundle, or the folder of a run.")],
    sha256: Annotated[str | None, typer.Option(help="The hash over all files that was published with it.")] = None,
) -> None:
    """Compare every file of a bundle with its manifest, and a folder with its archive; print the hash over all.

    Exits with 0 if all agree, with 1 if not, with 2 if it is no bundle.
    """
    with refusals():
        found = bundle.verify(source, sha256)
    console = Console()
    for problem in found.problems:
        console.print(f"[red]{plain(problem)}[/]", soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)
    console.print(f"[green]unchanged:[/] {found.files} files, sha256 over all {found.sha256}", soft_wrap=True)


@report.command()
def diff(
    a: Source,
    b: Source,
    factor: Annotated[float, typer.Option(help="A worst error may grow or shrink by this.")] = FACTOR,
    as_json: Annotated[bool, typer.Option("--json", help="Print the difference as JSON.")] = False,
) -> None:
    """Name every change between two reports, improvements included.

    Times are shown side by side and are no change. Exits with 0 if nothing differs, with 1 if something does, with 2
    if a report cannot be read.
    """
    with refusals():
        found = difference(read(a), read(b), factor)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print_difference(Console(), found)
    raise typer.Exit(0 if found.same else 1)


def _print_difference(console: Console, found: Difference) -> None:
    for key, (x, y) in found.about.items():
        console.print(f"[yellow]{plain(key)}[/]: {_pair(x, y)}", soft_wrap=True)
    for change in found.changes:
        console.print(_change(change), soft_wrap=True)
    for name, ids in (("first", found.only_a), ("second", found.only_b)):
        for id in ids:
            console.print(f"[yellow]only in the {name}[/] {plain(id)}", soft_wrap=True)
    if found.timings:
        console.print(_timings(found))
    verdicts = [c.verdict for c in found.changes]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICT_COLOUR)
    only = f"{len(found.only_a)} cases only in the first, {len(found.only_b)} only in the second"
    console.print(
        f"{'the same' if found.same else 'different'}: {len(found.changes)} changes ({counts}), {only}, "
        f"{len(found.about)} settings; worst errors within a factor of {found.factor:g} count as the same, "
        f"{', '.join(NOT_COMPARED)} and times were not compared",
        soft_wrap=True,
    )


def _change(c: Change) -> str:
    return f"[{VERDICT_COLOUR[c.verdict]}]{c.verdict}[/] {plain(c.id)} {c.what}: {_pair(c.a, c.b)}"


def _pair(a: Any, b: Any) -> str:
    """Both values, of long texts the first line that differs."""
    if isinstance(a, str) and isinstance(b, str):
        lines = zip_longest(a.splitlines(), b.splitlines(), fillvalue="")
        a, b = next(((x, y) for x, y in lines if x != y), (a, b))
    return f"{_value(a)} -> {_value(b)}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return plain(str(value) or repr(value))


def _timings(found: Difference) -> Table:
    table = Table("benchmark", "first, ms", "second, ms", "second / first")
    table.columns[0].overflow = "fold"
    for t in found.timings:
        ratio = f"{t.b / t.a:.2f}" if t.a and t.b else ""
        table.add_row(plain(t.id), _value(t.a), _value(t.b), ratio)
    return table


@report.command()
def badge(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for badge.svg and badge.json.")] = Path("out/badge"),
) -> None:
    """Draw level, operator-set version, operators passed of all and waivers, with all that must be said beside them."""
    with refusals():
        found = read(source)
        out.mkdir(parents=True, exist_ok=True)
        for name, text in {"badge.svg": badge_svg(found), "badge.json": badge_json(found)}.items():
            (out / name).write_text(text, encoding="utf-8")
            print(out / name)
    Console().print(plain(str(claim(found))), soft_wrap=True)


@report.command()
def matrix(
    sources: Annotated[list[Path], typer.Argument(help="Reports: report.json, folders of runs, or bundles.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("out/matrix.html"),
) -> None:
    """Write one page over several reports: backends, operators and dtypes."""
    with refusals():
        page = matrix_page({str(source): read(source) for source in sources})
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    print(out)
