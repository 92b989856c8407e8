"""What a run of the suite shows while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[str, bool], None]]:
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
