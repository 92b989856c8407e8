"""Reports from files: ``report.json``, the folder of a run, or its bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...untrusted import parse_json, read_bytes
from ..verdict.mustpass import OPERATOR_SET
from ..verdict.record import FORMAT, Record, Report, Status, Timing
from . import bundle, schema
from .bundle import BundleError

REPORT = "report.json"
SIZE_LIMIT = 256 << 20  # bytes of report.json
_ABOUT_NOTHING = {"format", "passed", "complete", "counts", "problems", "operators", "cases", "bench"}


class ReportError(ValueError):
    """What was given is not a report that can be read."""


def read(path: Path) -> Report:
    """Reads a report; the files of a bundle, or of a folder with a manifest, must be as the manifest says.

    Args:
        path: ``report.json``, a folder that holds one, or a bundle.

    Raises:
        ReportError: There is no such file, it is something else, it was changed, it is of another format, or
            what it states of its cases is not so.
    """
    try:
        content = _content(path)
    except ValueError as error:
        raise ReportError(str(error)) from error
    except OSError as error:
        raise ReportError(f"{error.filename or path}: {error.strerror or error}") from error
    return parse(content, str(path))


def _content(path: Path) -> bytes:
    if path.suffix == ".json":
        return read_bytes(path, SIZE_LIMIT)
    if path.is_dir() and not (path / bundle.MANIFEST).exists():
        return read_bytes(path / REPORT, SIZE_LIMIT)
    if path.is_file() and not bundle.is_compressed(path):
        raise BundleError(f"{path} is not report.json, the folder of a run or its bundle")
    held = bundle.load(path)
    if changed := bundle.check(held, path).problems:
        raise BundleError(f"{path} is not what its manifest says: {'; '.join(changed)}")
    if REPORT not in held:
        raise BundleError(f"{path} holds no {REPORT}")
    return held[REPORT]


def parse(content: bytes, source: str) -> Report:
    """Reads the text of ``report.json``.

    Args:
        content: The text.
        source: Its name, for errors.

    Raises:
        ReportError: It is not a report, one of another format, or one that contradicts itself.
    """
    try:
        data = parse_json(content, source)
    except ValueError as error:
        raise ReportError(str(error)) from error
    if not isinstance(data, dict) or not {"format", "cases", "backend"} <= data.keys():
        raise ReportError(f"{source} is JSON, but not a report of sbhal conformance")
    if data["format"] != FORMAT:
        advice = "update spikingbrain-hal" if _is_newer(data["format"]) else "run the suite again"
        raise ReportError(f"{source} is of report format {data['format']!r}, this version reads {FORMAT}: {advice}")
    if problem := next(schema.problems(data), None):
        raise ReportError(f"{source} is not a valid report: {problem}")
    if (version := data["operator_set"]["version"]) > OPERATOR_SET:
        advice = "update spikingbrain-hal"
        raise ReportError(f"{source} is of operator set {version}, this version knows up to {OPERATOR_SET}: {advice}")
    # JSON Schema takes 1.0 for an integer; the lists of operator sets go by whole numbers
    data["operator_set"]["version"] = int(version)
    found = Report(
        about={key: value for key, value in data.items() if key not in _ABOUT_NOTHING},
        records=[_made(Record, case | {"status": Status(case["status"])}) for case in data["cases"]],
        timings=[_made(Timing, timing) for timing in data["bench"]["timings"]],
        problems=data["problems"],
    )
    if problem := next(_contradictions(data, found), None):
        raise ReportError(f"{source} contradicts itself: {problem}")
    return found


def _contradictions(data: Mapping[str, Any], found: Report) -> Iterator[str]:
    """What a report states of its cases and the cases do not show."""
    times = Counter(record.id for record in found.records)
    yield from (f"the case {id} is there {n} times" for id, n in times.items() if n > 1)
    stated, counted = data["counts"], found.counts
    for name in dict.fromkeys([*counted, *stated]):
        if stated.get(name, 0) != counted.get(name, 0):
            yield f"it counts {stated.get(name, 0)} cases as {name}, and holds {counted.get(name, 0)}"
    for name in ("passed", "complete"):
        if data[name] is not getattr(found, name):
            yield f"it states {name} as {data[name]}, and its cases and problems say {getattr(found, name)}"


def _is_newer(number: Any) -> bool:
    return isinstance(number, (int, float)) and number > FORMAT


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass from the values that it knows; a later version may write more."""
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
