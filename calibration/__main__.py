"""``python -m calibration``, in a checkout: puts the suite on trial, and writes what its constants are chosen by."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

from . import page
from .calibration import Findings, calibrate, chosen
from .planted import PLANTS
from .trial import Verdict

app = typer.Typer(name="calibration", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def calibrate_suite(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each planted kernel is tried at.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    op: Annotated[list[str] | None, typer.Option(help="Only this operator and its backward; repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for calibration.md and calibration.svg.")] = Path("out/calibration"),
    modules: Annotated[
        list[str] | None, typer.Option("--import", help="Python module that declares operators or plants; repeatable.")
    ] = None,
) -> None:
    """Try the suite on planted bugs, which it must reject, and on correct variants, which it must accept.

    Writes the page after every seed, so an interrupted run leaves a page of the seeds that were done. Exits with 1 if a
    bug was accepted or a variant rejected, with 2 if nothing could be run.
    """
    console = Console()
    try:
        import matplotlib  # noqa: F401 - only the figure needs it, but a run of hours must not end in its absence

        for module in modules or []:
            import_module(module)
        plants = chosen(op or [])
    except (ValueError, ModuleNotFoundError) as error:
        hint = '; pip install "spikingbrain-hal[examples]"' if getattr(error, "name", "") == "matplotlib" else ""
        console.print(f"[bold red]nothing was run:[/] {escape(str(error) + hint)}")
        raise typer.Exit(2) from error
    torch.set_num_threads(1)  # references run many small operations, which more threads only slow down
    console.print(f"{len(plants)} planted kernels at {seeds} seeds from {first} on")

    def show(verdict: Verdict) -> None:
        if PLANTS[verdict.plant].wrong != verdict.rejected:
            console.print(f"[red]wrong verdict[/] on {verdict.plant} at seed {verdict.seed}")

    options = [f"--seeds {seeds}", *([f"--first {first}"] if first else [])]
    options += [*(f"--op {name}" for name in op or []), *(f"--import {name}" for name in modules or [])]

    def write(found: Findings) -> None:
        paths = page.write(found, out, f"python -m calibration {' '.join(options)}")
        console.print(f"seed {found.seeds[-1]} done: {', '.join(map(str, paths))}", soft_wrap=True)

    failures = calibrate(plants, range(first, first + seeds), write, show).failures()
    for failure in failures:
        console.print(f"[red]problem:[/] {escape(failure)}")
    console.print("[bold red]FAIL[/]" if failures else "[bold green]PASS[/]")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    app(prog_name="python -m calibration")
