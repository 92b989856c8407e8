"""The files of a run: report, page, JUnit, log and environment, and the bundle that holds them together."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..verdict.record import Record, Report, Status, first_line, group
from .about import ENVIRONMENT
from .bundle import MANIFEST, TARBALL, manifest, pack
from .claim import claim
from .page import render
from .reading import REPORT

_NAMES = {
    "json": REPORT,
    "junit": "junit.xml",
    "html": "report.html",
    "log": "log.txt",
    "environment": "environment.json",
}
MESSAGE_LENGTH = 200
_ERRORS = (Status.CRASH, Status.TIMEOUT, Status.DEVICE_LOST)


def write(report: Report, folder: Path, attached: Mapping[str, bytes] | None = None) -> dict[str, Path]:
    """Writes all files of a report, their manifest and the bundle of them all; returns their paths by kind.

    Args:
        report: What to write.
        folder: Where, made if it is missing. Files of other names that it holds are no part of the bundle.
        attached: The content of more files, by the name that they get: waivers as used, a journal.

    Raises:
        ValueError: An attached file has the name of another.
        ModuleNotFoundError: jinja2 is missing; the message names the extra to install.
    """
    if taken := sorted({*_NAMES.values(), MANIFEST, TARBALL} & (attached or {}).keys()):
        raise ValueError(f"write: attached has {taken[0]!r}, which every run writes itself")
    files = {_NAMES["json"]: to_json(report), _NAMES["junit"]: _junit(report), _NAMES["log"]: _log(report)}
    files |= {_NAMES["html"]: _bytes(render(report)), _NAMES["environment"]: _environment(report)}
    files |= attached or {}
    files[MANIFEST] = manifest(files).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files | {TARBALL: pack(files)}).items():
        _replace(folder / name, content)
    names = _NAMES | {name: name for name in attached or {}} | {"bundle": TARBALL}
    return {kind: folder / name for kind, name in names.items()}


def _replace(path: Path, content: bytes) -> None:
    """A file is there whole or not at all, even if the disk is full or the process is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def to_json(report: Report) -> bytes:
    """The text of ``report.json``."""
    return json_of(report.as_dict())


def _environment(report: Report) -> bytes:
    return json_of({key: report.about[key] for key in ENVIRONMENT if key in report.about})


def json_of(data: Any) -> bytes:
    """JSON of any data: what it cannot say, numbers that are not finite and objects, is there as null and as text."""
    return json.dumps(_plain(data), indent=1, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """What JSON can say: no number that is not finite, no half of a surrogate pair, no objects."""
    if isinstance(value, Mapping):
        return {_plain(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return _bytes(str(value)).decode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


# ---- the log: what a person greps, with all that lost processes printed


def _log(report: Report) -> bytes:
    a = report.about
    lines = [a["command"], f"backend {a['backend']['name']} on {a['device']['name']}, seed {a['seed']}"]
    lines += [f"started {a.get('started', 'at an unknown time')}, took {a.get('seconds', '?')} s", ""]
    for r in report.records:
        lines.append(f"{r.status.value:<11} {r.seconds:>9.3f} s  {r.id}{f'  waiver {r.waiver}' if r.waiver else ''}")
        details = {"": r.message, "run it alone: ": r.reproduce, "the last that it printed:\n": r.output}
        lines += [_indented(f"{what}{text}") for what, text in details.items() if text]
    lines += [f"problem: {problem}" for problem in report.problems]
    verdict = "PASS" if report.passed else "FAIL"
    lines += ["", f"{verdict} {len(report.records)} cases: {report.tally}", str(claim(report))]
    return _bytes("\n".join(lines) + "\n")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


# ---- JUnit


def _junit(report: Report) -> bytes:
    root = ElementTree.Element("testsuites", name="sbhal conformance")
    for op, records in group(report.records, "op").items():
        errors = sum(r.status in _ERRORS for r in records)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=op,
            tests=str(len(records)),
            failures=str(sum(r.broken for r in records) - errors),
            errors=str(errors),
            skipped=str(sum(not r.broken and r.status != Status.PASS for r in records)),
        )
        for record in records:
            _junit_case(suite, record)
    _junit_run(root, report)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root)


def _junit_case(suite: ElementTree.Element, record: Record) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=record.op, name=record.id, time=f"{record.seconds:.4f}")
    if record.status == Status.PASS:
        return
    kind = "error" if record.status in _ERRORS else "failure" if record.broken else "skipped"
    text = "\n".join(filter(None, (record.message, record.reproduce, record.output)))
    _junit_note(case, kind, f"{record.status.value}: {first_line(record.message)[:MESSAGE_LENGTH]}", text)


def _junit_run(root: ElementTree.Element, report: Report) -> None:
    """What is wrong beyond single cases: without it a run that lost its workers would be all green."""
    wrong = {"complete": "" if report.complete else f"the run ended early: {report.about['interrupted']}"}
    wrong |= {f"problem {number}": problem for number, problem in enumerate(report.problems, 1)}
    errors = str(sum(map(bool, wrong.values())))
    counts = {"name": "run", "tests": str(len(wrong)), "failures": "0", "errors": errors, "skipped": "0"}
    suite = ElementTree.SubElement(root, "testsuite", counts)
    for name, text in wrong.items():
        case = ElementTree.SubElement(suite, "testcase", classname="run", name=name, time="0")
        if text:
            _junit_note(case, "error", first_line(text)[:MESSAGE_LENGTH], text)


def _junit_note(case: ElementTree.Element, kind: str, message: str, text: str) -> None:
    ElementTree.SubElement(case, kind, message=_printable(message)).text = _printable(text)


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c.isprintable() or c == "\n")
