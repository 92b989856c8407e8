"""``sbhal ops``: every operator, and who serves it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rich.console import Console
from rich.table import Table

from ..backend.plugin import Unusable, undeclared, usable
from ..calls.selection import installed_backends, load
from ..declare.registry import OPERATORS
from .doctor import end_with


def ops() -> None:
    """List the operators, where they come from, and the backends that serve them here.

    Exits with 1 where a backend is broken, or offers an operator that is not declared.
    """
    served: dict[str, Collection[str]] = {}
    problems = []
    for found in installed_backends().values():
        try:
            kernels, refused = load(usable(found))
        except Unusable as error:
            problems += [str(error)] if error.broken else []
        else:
            served[found.name] = kernels.keys()
            problems += undeclared(found.name, refused)
    table = Table("operator", "backward", "backends", "dtypes", "source")
    table.columns[0].no_wrap = True  # half a name could be two operators'
    for spec in OPERATORS.values():
        if spec.forward is None:
            backward = "straight through" if spec.straight_through else _served(served, f"{spec.name}_backward")
            dtype = next(iter(spec.inputs.values())).dtype
            table.add_row(
                spec.name, backward if spec.differentiable else "none", _served(served, spec.name), dtype, spec.source
            )
    console = Console()
    console.print(table)
    for backend, operators in served.items():
        console.print(f"{backend} serves {len(operators)} of {len(OPERATORS)} operators")
    end_with(console, problems)


def _served(served: Mapping[str, Collection[str]], name: str) -> str:
    return ", ".join(backend for backend, operators in served.items() if name in operators) or "reference"
