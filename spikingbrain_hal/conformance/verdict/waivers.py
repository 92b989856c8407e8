"""Known failures, each with an owner and an end: cases that may fail in one way, on one device, until a day.

The format is described in ``docs/waivers.md``. A waived case still runs; one that passes, that fails in another way or
whose waiver has expired, fails the run.
"""

from __future__ import annotations

import datetime
import fnmatch
import hashlib
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .levels import LEVELS
from .record import Record, Status

FIRST_LEVEL = 2
KINDS = {
    "unsupported": (Status.UNSUPPORTED,),
    "defect": (Status.FAIL, Status.CRASH, Status.TIMEOUT, Status.DEVICE_LOST, Status.LIED),
}
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
ANY = "any"


@dataclass(frozen=True)
class Waiver:
    """One ``[[waiver]]``.

    Attributes:
        id: Names it in reports.
        cases: Shell patterns of case ids.
        backend: The backend's name.
        device: A shell pattern of the device's name.
        driver: Versions of the driver, ``">=1.2, <2"``, or ``"any"``.
        kind: ``"unsupported"`` or ``"defect"``.
        status: How the cases end.
        issue: Where the failure is tracked.
        owner: Who will see to it.
        expires: The last day on which it holds.
        max_error: The largest error that is expected, as a fraction of what is allowed.
        message: A part of the message that is expected.
    """

    id: str
    cases: tuple[str, ...]
    backend: str
    device: str
    driver: str
    kind: str
    status: Status
    issue: str
    owner: str
    expires: datetime.date
    max_error: float | None = None
    message: str = ""

    def covers(self, record: Record) -> bool:
        """Whether the record is of one of its cases."""
        return any(matching([record.id], pattern) for pattern in self.cases)

    def objection(self, record: Record, today: datetime.date) -> str:
        """Why it does not excuse the record; empty if it does."""
        if today > self.expires:
            return f"it expired on {self.expires}"
        if record.status != self.status:
            return f"it expects {self.status.value}"
        if self.max_error is not None and (record.worst is None or not record.worst <= self.max_error):
            return f"it expects an error of at most {self.max_error:g} times what is allowed, not {record.worst}"
        if self.message not in record.message:
            return f"it expects a message with {self.message!r}"
        return ""


@dataclass(frozen=True)
class Waivers:
    """The waivers that hold for a backend and device.

    Attributes:
        those: The waivers.
        about: What a report says of the file.
    """

    those: tuple[Waiver, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, record: Record, today: datetime.date | None = None) -> Record:
        """The record as waived, unexpectedly passed, or failed in a way that isn't the expected one."""
        waiver = next((w for w in self.those if w.covers(record)), None)
        if waiver is None or record.status == Status.NOT_RUN:
            return record
        record = replace(record, waiver=waiver.id)
        if record.status == Status.PASS:
            expected = f"passes, though the waiver {waiver.id} expects {waiver.status.value}; remove it"
            return replace(record, status=Status.XPASS, message=expected)
        objection = waiver.objection(record, today or datetime.date.today())
        if not objection:
            return replace(record, status=Status.WAIVED)
        status = record.status if record.broken else Status.FAIL
        return replace(record, status=status, message=f"not waived by {waiver.id}: {objection}\n{record.message}")


@dataclass(frozen=True)
class File:
    """A file of waivers as it was when it was read: what becomes of it during a run changes nothing.

    Attributes:
        path: Its path.
        content: Its bytes.
    """

    path: Path
    content: bytes

    @staticmethod
    def read(path: Path) -> File:
        """Reads it.

        Raises:
            ValueError: It can't be read; the message names it.
        """
        try:
            return File(path, path.read_bytes())
        except OSError as error:
            raise ValueError(f"waivers {path}: {error.strerror or error}") from error


def load(file: File, backend: str, device: Mapping[str, Any], levels: Mapping[str, int]) -> Waivers:
    """The waivers of a file.

    Args:
        file: The file.
        backend: The name of the backend under test; waivers for others are checked and left out.
        device: What the report says of the device: its name, and its driver if it has one.
        levels: The level of every case there is, by id.

    Raises:
        ValueError: It isn't TOML or a waiver isn't right; the message names the file, the waiver and the key.
    """
    path = file.path
    try:
        data = _toml().loads(file.content.decode())
    except ValueError as error:
        raise ValueError(f"waivers {path}: {error}") from error
    entries = data.get("waiver", [])
    if set(data) - {"waiver"} or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ValueError(f"waivers {path}: expected nothing but [[waiver]] tables, got {', '.join(data)}")
    found: list[Waiver] = []
    for number, entry in enumerate(entries, 1):
        try:
            waiver = _read(entry)
            _check_cases(waiver, levels)
            if any(w.id == waiver.id for w in found):
                raise ValueError("another waiver has this id")
            found.append(waiver)
        except ValueError as error:
            raise ValueError(
                f"waivers {path}: number {number} ({entry.get('id', 'without an id')}): {error}"
            ) from error
    try:
        used = tuple(w for w in found if _holds_for(w, backend, device))
        _check_overlap(used, levels)
    except ValueError as error:
        raise ValueError(f"waivers {path}: {error}") from error
    about = {
        "file": path.name,
        "sha256": hashlib.sha256(file.content).hexdigest(),
        "count": len(found),
        "used": len(used),
    }
    told = ("id", "issue", "owner", "expires", "message")
    about["entries"] = [{name: str(getattr(w, name)) for name in told} for w in used]
    return Waivers(used, about)


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        return import_module("tomli")
    except ModuleNotFoundError as error:
        raise ValueError('Python 3.10 needs tomli to read it: pip install "spikingbrain-hal[cli]"') from error


def _read(entry: Mapping[str, Any]) -> Waiver:
    known = {f.name: f for f in fields(Waiver)}
    if unknown := sorted(entry.keys() - known):
        raise ValueError(f"there is no key {unknown[0]!r}; there are {', '.join(known)}")
    if missing := [name for name, f in known.items() if f.default is MISSING and name not in entry]:
        raise ValueError(f"{missing[0]} is missing")
    values = dict(entry)
    for name in ("id", "backend", "device", "driver", "kind", "status", "issue", "owner", "message"):
        if not isinstance(values.get(name, "text"), str) or not values.get(name, "text").strip():
            raise ValueError(f"{name} is {values[name]!r}, expected text")
    cases = values["cases"]
    if not isinstance(cases, list) or not cases or not all(isinstance(c, str) and c for c in cases):
        raise ValueError(f"cases is {cases!r}, expected a list of patterns")
    if type(values["expires"]) is not datetime.date:
        raise ValueError(f"expires is {values['expires']!r}, expected a date such as 2027-01-31, without quotes")
    if values["kind"] not in KINDS:
        raise ValueError(f"kind is {values['kind']!r}, expected {' or '.join(KINDS)}")
    statuses = [s.value for s in KINDS[values["kind"]]]
    if values["status"] not in statuses:
        raise ValueError(f"status is {values['status']!r}, expected {' or '.join(statuses)} for {values['kind']}")
    error = values.get("max_error")
    if error is not None and (isinstance(error, bool) or not isinstance(error, int | float) or not 1 < error < 1e300):
        raise ValueError(f"max_error is {error!r}, expected a number greater than 1, which is what is allowed")
    if error is not None and values["status"] != Status.FAIL.value:
        raise ValueError(f"max_error is for cases that fail, not for {values['status']}")
    if error is None and "message" not in values:
        raise ValueError("how the cases fail is missing: max_error, message or both")
    _ranges(values["driver"])
    return Waiver(**{**values, "cases": tuple(cases), "status": Status(values["status"])})


def matching(ids: Iterable[str], pattern: str) -> list[str]:
    """The ids that a pattern of ``*`` and ``?`` matches; brackets stand for themselves, as ids have them."""
    return fnmatch.filter(ids, pattern.replace("[", "[[]"))


def _check_cases(waiver: Waiver, levels: Mapping[str, int]) -> None:
    for pattern in waiver.cases:
        covered = matching(levels, pattern)
        if not covered:
            raise ValueError(f"cases: {pattern!r} matches no case")
        low = [case for case in covered if levels[case] < FIRST_LEVEL]
        if low:
            raise ValueError(f"cases: {low[0]} is of level {levels[low[0]]} ({LEVELS[levels[low[0]]]}), never waived")


def _check_overlap(waivers: Sequence[Waiver], levels: Mapping[str, int]) -> None:
    seen: dict[str, str] = {}
    for waiver in waivers:
        for case in {case for pattern in waiver.cases for case in matching(levels, pattern)}:
            if case in seen:
                raise ValueError(f"the waivers {seen[case]} and {waiver.id} both cover {case}")
            seen[case] = waiver.id


def _holds_for(waiver: Waiver, backend: str, device: Mapping[str, Any]) -> bool:
    if waiver.backend != backend or not fnmatch.fnmatchcase(str(device["name"]), waiver.device):
        return False
    if waiver.driver == ANY:
        return True
    if "driver" not in device:
        raise ValueError(
            f"waiver {waiver.id}: driver is {waiver.driver!r}, but the device names no driver; use {ANY!r}"
        )
    return in_range(str(device["driver"]), waiver.driver)


def in_range(version: str, ranges: str) -> bool:
    """Whether a version is in all of some ranges, ``">=1.2, <2"``; versions are compared number by number."""
    return all(COMPARE[sign](_order(version, bound), 0) for sign, bound in _ranges(ranges))


def _ranges(text: str) -> list[tuple[str, str]]:
    if text == ANY:
        return []
    found = [re.fullmatch(r"\s*(<=|>=|==|<|>)\s*([\w.+-]*\d[\w.+-]*)\s*", part) for part in text.split(",")]
    if not all(found):
        raise ValueError(f'driver is {text!r}, expected "any" or ranges such as ">=1.2, <2"')
    return [(m[1], m[2]) for m in found if m]


def _order(a: str, b: str) -> int:
    """-1, 0 or 1, as version a is before, the same as or after b; a number that one lacks counts as 0."""
    pairs = list(zip_longest(*(map(int, re.findall(r"\d+", v)) for v in (a, b)), fillvalue=0))
    left, right = [x for x, _ in pairs], [y for _, y in pairs]
    return (left > right) - (left < right)
