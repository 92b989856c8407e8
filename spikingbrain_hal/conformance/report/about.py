"""What was run on what: the backend, its device, the environment and the files that the kernels come from."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import distributions
from pathlib import Path
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any

import torch

from ... import __version__
from ...backend.backend import Backend, Kernel
from ...declare.registry import OPERATORS
from ..checks import BACKEND_CHECKS, CHECKS, promise_of
from ..verdict.mustpass import OPERATOR_SET
from .elf import toolchain

ENVIRONMENT = ("package", "torch", "torch_build", "python", "platform", "environment", "packages", "builds")


def describe(
    backend: Backend, profile: str, seed: int, command: str, ops: Sequence[str] = (), case: str = ""
) -> dict[str, Any]:
    """The head of a report.

    Args:
        backend: What is tested; its kernels are loaded.
        profile, seed, command: How it is run.
        ops, case: What the run is limited to; empty for a run of everything.
    """
    properties = backend.properties()
    return {
        "backend": {
            "name": backend.name,
            "vendor": backend.vendor,
            "simulated": backend.simulated,
            **_commit(_file_of(backend.load)),
        },
        "device": {"type": backend.device_type, "name": properties.name, **properties.details},
        "package": {"version": __version__, **_commit(Path(__file__))},
        "torch": torch.__version__,
        "torch_build": torch.__config__.show().strip(),
        "python": platform.python_version(),
        "platform": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SBHAL_")},
        "packages": packages(),
        "builds": builds(backend.load()),
        "operator_set": {
            "version": OPERATOR_SET,
            "operators": {name: {"version": s.version, "source": s.source} for name, s in OPERATORS.items()},
        },
        "checks": {name: promise_of(name) for name in (*BACKEND_CHECKS, *CHECKS)},
        "profile": profile,
        "seed": seed,
        "filters": {"op": list(ops), "case": case},
        "command": command,
    }


def packages() -> dict[str, str]:
    """Every installed distribution and its version, by name; of two with one name the one that is imported."""
    found: dict[str, str] = {}
    for distribution in distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(name, str(distribution.version))
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def builds(kernels: Mapping[str, Kernel]) -> list[dict[str, Any]]:
    """The modules that a backend's kernels come from: the hash of each file, and what the module states of itself."""
    functions = _closed([f for kernel in kernels.values() for f in (kernel.plan, kernel.launch, kernel.run) if f])
    found = {m.__name__: (m, path) for m in map(_module_of, functions) if m and (path := _path_of(m))}
    return [_build(*found[name]) for name in sorted(found)]


def _closed(functions: Iterable[Any]) -> list[Callable[..., Any]]:
    """Functions and those that they call through a partial or a closure: a wrapper is not where a kernel is written."""
    found: dict[int, Callable[..., Any]] = {}
    waiting = list(functions)
    while waiting:
        function = waiting.pop()
        if id(function) in found or not isinstance(function, (partial, FunctionType, BuiltinFunctionType)):
            continue
        found[id(function)] = function
        waiting += [function.func] if isinstance(function, partial) else []
        waiting += [value for cell in getattr(function, "__closure__", None) or () for value in _contents(cell)]
    return list(found.values())


def _contents(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not assigned yet
        return []


def _build(module: ModuleType, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "module": module.__name__,
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **toolchain(content),
        "states": {} if path.suffix == ".py" else dict(_statements(module)),
    }


def _statements(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The plain values among a native module's attributes, such as its instruction set or its compiler's flags."""
    for name, value in sorted(vars(module).items()):
        if not name.startswith("__") and isinstance(value, (str, int, float, bool, dict)):
            yield name, value


def _module_of(function: Callable[..., Any]) -> ModuleType | None:
    """Where a function is from; a native one need not say, so whoever holds it under its name is asked too."""
    stated, name = getattr(function, "__module__", None), getattr(function, "__name__", "")
    if stated:
        return sys.modules.get(stated)
    return next((m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is function), None)


def _path_of(module: ModuleType) -> Path | None:
    path = Path(getattr(module, "__file__", None) or "")
    return path if path.is_file() else None


def _file_of(function: Callable[..., Any]) -> Path | None:
    module = _module_of(function)
    return _path_of(module) if module else None


@cache
def _commit(file: Path | None) -> dict[str, Any]:
    """The commit of the checkout that a file belongs to, and whether that has local changes; None if it has none."""

    def git(*args: str) -> str | None:
        assert file is not None
        try:
            done = subprocess.run(["git", "-C", str(file.parent), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = None
    if file is not None and git("ls-files", "--error-unmatch", file.name):
        commit = git("rev-parse", "--short=12", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain")) if commit else None}
