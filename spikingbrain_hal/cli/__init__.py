"""The command ``sbhal``: prove a backend, explain a choice, list the operators."""

from __future__ import annotations

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
    app()
