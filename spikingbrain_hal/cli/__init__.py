"""The command ``sbhal``: prove a backend, explain a choice, list the operators."""

from __future__ import annotations

import os
import sys

EXTRA = ("typer", "rich", "jinja2")


def main() -> None:
    """Entry point of ``sbhal`` and of ``python -m spikingbrain_hal``."""
    try:
        import jinja2  # noqa: F401 - only the report needs it, but a run of minutes must not end in its absence

        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        sys.exit(f'sbhal needs {error.name}: pip install "spikingbrain-hal[cli]"')
    try:
        try:
            app()
        finally:
            if sys.stdout:  # none where it is closed
                sys.stdout.flush()
    except OSError as error:  # of the output itself: commands answer for what they read and write
        _silence()
        if isinstance(error, BrokenPipeError):
            sys.exit(1)  # whoever read it has seen enough
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _silence() -> None:
    """Sends what is still to be written to standard output, and cannot be, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
