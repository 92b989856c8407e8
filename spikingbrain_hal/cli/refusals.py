"""How every command ends that was given something wrong: with one sentence and exit status 2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import BackendUnavailable, UnsupportedOp

LONGEST = 2000  # characters of a sentence


def plain(text: str) -> str:
    """Text of others, for the terminal: on one line, without markup and the control codes that could rule it."""
    return escape("".join(c for c in " ".join(text.expandtabs().splitlines()) if c.isprintable()))


def sentence(error: Exception) -> str:
    """What an error says, in plain text; of a file that cannot be used its name first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return plain(f"{error.filename}: {error.strerror}")
    return plain(str(error)[:LONGEST] or type(error).__name__)


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what a wrong argument or file raises into one sentence on standard error and exit status 2."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has gone, which is no fault
    except (ValueError, OSError, ModuleNotFoundError, BackendUnavailable, UnsupportedOp) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {sentence(error)}", soft_wrap=True)
        raise typer.Exit(2) from error


def finite(value: float) -> float:
    """Lets a number pass as an option's value, but for infinity and NaN, which no range keeps out."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite")
    return value
