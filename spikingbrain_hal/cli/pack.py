"""``sbhal pack``: weights as integers and scales, checked against their source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .. import packing
from ..checkpoint.beside import left_behind
from .refusals import finite, refusals, sentence

SECONDS_BETWEEN_LINES = 10.0


def pack(
    src: Annotated[
        Path, typer.Argument(help="Checkpoint folder, plain or W8ASpike; with --verify alone, a packed one.")
    ],
    dst: Annotated[
        Path | None, typer.Argument(help="Folder to write; one that a stopped run left is gone on with.")
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Only compare DST with SRC, or only write it; both if absent."),
    ] = None,
    down_proj: Annotated[bool, typer.Option("--down-proj", help="Pack the down projections too.")] = False,
    group_size: Annotated[int, typer.Option(min=1, help="Inputs that share a scale.")] = packing.GROUP_SIZE,
    shard_size: Annotated[
        float, typer.Option(min=1e-6, max=1e6, callback=finite, help="Size of a file in GB.")
    ] = packing.SHARD_BYTES / 1e9,
) -> None:
    """Write a checkpoint's projections as integers and scales, then read all of it again and compare.

    Code that comes with SRC is left behind, with what names it. Exits with 1 if DST is not what SRC implies, with 2 if
    it cannot be written or read, which never harms SRC nor what of DST was finished.
    """
    console = Console()
    with refusals(), _differences(console):
        if dst is None:
            if verify is not True:
                raise packing.PackingError("DST is missing; only --verify takes one folder")
            with _progress(console, "reading") as progress:
                count = packing.verify_checksums(src, progress)
            console.print(f"[bold green]{count} tensors[/] have the checksums that they were written with")
            return
        if verify is not True:
            with _progress(console, "packing") as progress:
                packing.pack(src, dst, group_size, down_proj, int(shard_size * 1e9), progress)
            console.print(f"packed: {escape(str(dst))}", soft_wrap=True)
            if left := left_behind(src, src.glob("*.safetensors")):
                console.print(f"left behind: {escape(', '.join(left))}", soft_wrap=True)
        if verify is not False:
            with _progress(console, "comparing") as progress:
                count = packing.verify(src, dst, progress)
            console.print(f"[bold green]{count} tensors[/] are, bit for bit, what the source implies")


@contextmanager
def _differences(console: Console) -> Iterator[None]:
    """Ends the command with 1 where DST was read and is another."""
    try:
        yield
    except packing.Difference as error:
        console.print(f"[bold red]problem:[/] {sentence(error)}", soft_wrap=True)
        raise typer.Exit(1) from error


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, now and then a line elsewhere."""
    spoken = time.monotonic()
    columns = (DownloadColumn(binary_units=False), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description:<48}"), BarColumn(), *columns, console=console)
    task = bar.add_task(what, total=None)

    def advance(name: str, done: int, total: int) -> None:
        nonlocal spoken
        if console.is_terminal:
            bar.update(task, completed=done, total=total, description=f"{what} {name[-38:]}")
        elif time.monotonic() - spoken > SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            console.print(f"{what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, at {name}")

    if console.is_terminal:
        with bar:
            yield advance
    else:
        yield advance
