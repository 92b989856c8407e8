"""``sbhal doctor``: what was found, what was chosen, and why."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..backend.backend import Backend, DeviceProperties
from ..backend.plugin import Unusable, blaming, undeclared, usable
from ..calls.selection import Active, current, installed_backends, load
from ..declare.registry import OPERATORS
from ..errors import BackendUnavailable

OPENMP = re.compile(r"(/\S*/lib(?:gomp|omp|iomp5)(?:-\w+)?\.so\S*)")


def openmp_runtimes(maps: str) -> list[str]:
    """The OpenMP runtimes among the files that a process has mapped, given the text of ``/proc/self/maps``."""
    return sorted(set(OPENMP.findall(maps)))


def doctor() -> None:
    """Say which backends there are, which one serves each device and why, and what is wrong.

    Exits with 1 where something is wrong: a backend that is broken or offers an operator that is not declared, two
    OpenMP runtimes in one process, or a selection that cannot be made.
    """
    console = Console()
    console.print(f"spikingbrain-hal {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for name, value in sorted(os.environ.items()):
        if name.startswith("SBHAL_"):
            console.print(f"{name}={value}")
    problems = _show_backends(console)
    asked = installed_backends().get(os.environ.get("SBHAL_BACKEND", ""))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices += [asked.backend.device_type] if asked is not None and asked.backend is not None else []
    for device in dict.fromkeys(devices):
        problems += _show_choice(console, device)
    problems += _show_openmp(console)
    end_with(console, problems)
    console.print("[bold green]no problems found[/]")


def end_with(console: Console, problems: list[str]) -> None:
    """Prints problems, and ends the command with 1 if there are any."""
    for problem in problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def _show_backends(console: Console) -> list[str]:
    problems = []
    table = Table("backend", "device type", "available", "device", title="Backends", title_justify="left")
    for name, found in sorted(installed_backends().items()):
        backend = found.backend
        state, details = "yes", ""
        try:
            served = usable(found)
            refused = load(served)[1]  # first: what a device says of itself may depend on the module that drives it
            problems += undeclared(name, refused)
            details = _details(served)
        except Unusable as error:
            state = f"no: {error.reason}"
            problems += [str(error)] if error.broken else []
        simulated = " (simulated)" if backend is not None and backend.simulated else ""
        table.add_row(name + simulated, backend.device_type if backend else "?", escape(state), escape(details))
    console.print(table)
    return problems


def _details(backend: Backend) -> str:
    with blaming(backend.name, "it does not describe its device"):
        properties = backend.properties()
        if not isinstance(properties, DeviceProperties):
            raise TypeError(f"properties returned {properties!r}, expected DeviceProperties")
        return "\n".join([properties.name, *(f"{k}: {v}" for k, v in properties.details.items())])


def _show_choice(console: Console, device: str) -> list[str]:
    try:
        active = current(device)
    except BackendUnavailable as error:
        return [f"device type {device}: {error}"]
    strict = ", strictly" if active.strict else ""
    console.print(f"\n[bold]{device}[/] is served by [bold]{active.name}[/]{strict}: {escape(active.reason)}")
    table = Table("operator", "runs as", "why")
    for name in OPERATORS:
        table.add_row(name, *served_by(active, name))
    console.print(table)
    return []


def served_by(active: Active, name: str) -> tuple[str, str]:
    """What runs an operator under a selection, and why it is no kernel of the backend, as text for a table."""
    if name in active.kernels:
        return f"{active.name}, version {active.kernels[name].version}", ""
    if active.backend is None:
        return "reference", "no backend is selected"
    return "error" if active.strict else "reference", escape(active.refused[name])


def _show_openmp(console: Console) -> list[str]:
    maps = Path("/proc/self/maps")
    found = openmp_runtimes(maps.read_text(encoding="utf-8")) if maps.exists() else []
    console.print(f"OpenMP runtime: {', '.join(found) or 'none loaded'}")
    if len(found) > 1:
        return [f"{len(found)} OpenMP runtimes are loaded, whose threads fight for the cores: {', '.join(found)}"]
    return []
