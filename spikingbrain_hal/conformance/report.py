"""A run as files: ``report.json``, ``junit.xml`` and one self-contained page, ``report.html``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..backend import Backend
from ..registry import OPERATORS
from .checks import CHECKS
from .record import BROKEN, Cell, Record, Report, Status, Timing, group

COLUMNS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "int16": "integer", "int8": "integer"}


def describe(backend: Backend, profile: str, seed: int, command: str) -> dict[str, Any]:
    """What is run on what: the head of a report."""
    properties = backend.properties()
    return {
        "backend": {"name": backend.name, "vendor": backend.vendor, "simulated": backend.simulated},
        "device": {"type": backend.device_type, "name": properties.name, **properties.details},
        "package": {"version": __version__, **_commit()},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SBHAL_")},
        "profile": profile,
        "seed": seed,
        "command": command,
    }


def _commit() -> dict[str, Any]:
    """The commit of the checkout that this package runs from, if it is one."""
    folder = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", "../spec.py")
    commit = git("rev-parse", "--short=12", "HEAD") if tracked else None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain")) if commit else None}


def write(report: Report, folder: Path) -> dict[str, Path]:
    """Writes all files of a report; returns their paths by kind.

    Raises:
        ModuleNotFoundError: jinja2 is missing; the message names the extra to install.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / name for kind, name in _NAMES.items()}
    paths["json"].write_text(json.dumps(report.as_dict(), indent=1), encoding="utf-8")
    paths["junit"].write_bytes(_junit(report))
    paths["html"].write_text(render(report), encoding="utf-8")
    return paths


_NAMES = {"json": "report.json", "junit": "junit.xml", "html": "report.html"}


def _junit(report: Report) -> bytes:
    root = ElementTree.Element("testsuites", name="sbhal conformance")
    for op, records in group(report.records, "op").items():
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=op,
            tests=str(len(records)),
            failures=str(sum(r.status in (Status.FAIL, Status.LIED) for r in records)),
            errors=str(sum(r.status in (Status.CRASH, Status.TIMEOUT) for r in records)),
            skipped=str(sum(not r.broken and r.status != Status.PASS for r in records)),
        )
        for record in records:
            _junit_case(suite, record)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root)


def _junit_case(suite: ElementTree.Element, record: Record) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=record.op, name=record.id, time=f"{record.seconds:.4f}")
    if record.status == Status.PASS:
        return
    kind = {Status.CRASH: "error", Status.TIMEOUT: "error"}.get(
        record.status, "failure" if record.broken else "skipped"
    )
    note = ElementTree.SubElement(case, kind, message=f"{record.status.value}: {record.message.splitlines()[0][:200]}")
    note.text = "".join(c for c in f"{record.message}\n{record.reproduce}" if c.isprintable() or c == "\n")


# ---- the page


def render(report: Report) -> str:
    """The page as one string of HTML that needs nothing else."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the report needs jinja2: pip install "spikingbrain-hal[cli]"') from error
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"sig": _significant, "percent": lambda x: f"{100 * x:.0f} %"}
    source = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        about=report.about,
        counts=report.counts,
        dtypes=list(dict.fromkeys(c for d, c in COLUMNS.items() if any(r.dtype == d for r in report.records))),
        operators=report.operators(),
        cells={op: _by_column(records) for op, records in group(report.records, "op").items()},
        matrix=_matrix(report),
        checks=_checks(report),
        broken=[r for r in report.records if r.broken],
        missing=_missing(report),
        best=_best_timing(report),
        sources={name: spec.source for name, spec in OPERATORS.items()},
        broken_names=[s.value for s in BROKEN],
    )


def _significant(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{float(f'{value:.{digits}g}'):,.10g}"


def _checks(report: Report) -> list[tuple[str, str, Cell]]:
    """Name, promise and counts of every check that was run, those with most cases first."""
    found = group(report.records, "check")
    rows = [(name, CHECKS[name].promise, Cell.of(records)) for name, records in found.items()]
    return sorted(rows, key=lambda row: -row[2].total)


def _by_column(records: Sequence[Record]) -> dict[str, Cell]:
    columns = dict.fromkeys(COLUMNS[r.dtype] for r in records)
    return {column: Cell.of([r for r in records if COLUMNS[r.dtype] == column]) for column in columns}


def _matrix(report: Report) -> dict[str, dict[str, dict[str, Cell]]]:
    """Operator, check, column."""
    return {
        op: {check: _by_column(rows) for check, rows in group(records, "check").items()}
        for op, records in group(report.records, "op").items()
    }


def _missing(report: Report) -> list[tuple[str, str, str, int]]:
    """What did not run or is not served: status, operator, reason, how many cases."""
    found: dict[tuple[str, str, str], int] = {}
    for r in report.records:
        if r.status in (Status.UNSUPPORTED, Status.NOT_RUN, Status.WAIVED):
            key = r.status.value, r.op, r.message or "no reason given"
            found[key] = found.get(key, 0) + 1
    return [(*key, count) for key, count in found.items()]


def _best_timing(report: Report) -> Mapping[str, Timing]:
    """The first benchmark case of each operator that was timed."""
    found: dict[str, Timing] = {}
    for timing in report.timings:
        if timing.milliseconds is not None:
            found.setdefault(timing.op, timing)
    return found
