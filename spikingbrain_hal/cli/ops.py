"""``sbhal ops``: every operator, and who serves it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..backend import Backend
from ..registry import OPERATORS
from ..selection import installed_backends, load


def ops() -> None:
    """List the operators, where they come from, and the backends that serve them here."""
    table = Table("operator", "backward", "backends", "dtypes", "source")
    usable = [f.backend for f in installed_backends().values() if f.backend and f.backend.probe() is None]
    for spec in OPERATORS.values():
        if spec.forward is None:
            backward = "straight through" if spec.straight_through else _served(usable, f"{spec.name}_backward")
            dtype = next(iter(spec.inputs.values())).dtype
            table.add_row(
                spec.name, backward if spec.differentiable else "none", _served(usable, spec.name), dtype, spec.source
            )
    console = Console()
    console.print(table)
    for backend in usable:
        console.print(f"{backend.name} serves {len(load(backend)[0])} of {len(OPERATORS)} operators")


def _served(usable: list[Backend], name: str) -> str:
    names = [b.name for b in usable if name in load(b)[0]]
    return ", ".join(names) or "reference"
