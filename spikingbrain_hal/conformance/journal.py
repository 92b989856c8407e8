"""A run written down as it goes, so that one that was interrupted, however, can be continued."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .record import Record

FORMAT = 1
NAME = "results.jsonl"


class Journal:
    """``results.jsonl``: a line that says what is run on what, then one for each record, in the order they came.

    A problem beyond single cases has a line too. Records are as the cases ended: waivers apply to what is read.

    Args:
        path: The file.
        options: What was asked for.
        about: The head of the report.

    Attributes:
        records: What an interrupted run has left, by id.
        problems: Likewise.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path, self.options, self.about = path, options, about
        self.records: dict[str, Record] = {}
        self.problems: list[str] = []
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def begin(folder: Path, options: Mapping[str, Any], about: Mapping[str, Any]) -> Journal:
        """Starts a new one in this folder, in place of one that is there."""
        folder.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "options": options, "about": about}
        (folder / NAME).write_text(json.dumps(head) + "\n", encoding="utf-8")
        return Journal(folder / NAME, options, about)

    @staticmethod
    def resume(folder: Path) -> Journal:
        """Opens the one in this folder; a last line that was cut off while it was written is dropped.

        Raises:
            ValueError: There is none, or it is not one.
        """
        path = folder / NAME
        if not path.is_file():
            raise ValueError(f"cannot resume {folder}: there is no {NAME} in it")
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            head, *lines = _lines(whole)
            if head["format"] != FORMAT:
                raise ValueError(f"its format is {head['format']}, this version writes {FORMAT}")
            records = [Record.from_dict(line) for line in lines if "problem" not in line]
            found = head["options"], head["about"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"cannot resume {folder}: {NAME} is damaged: {error}") from error
        if len(whole) < len(text):
            path.write_bytes(whole)
        journal = Journal(path, *found)
        journal.records = {record.id: record for record in records}
        journal.problems = [line["problem"] for line in lines if "problem" in line]
        return journal

    def add(self, record: Record) -> None:
        """Writes a record at once."""
        self._write(record.as_dict())

    def add_problem(self, problem: str) -> None:
        """Writes a problem at once."""
        self._write({"problem": problem})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()


def _lines(text: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What is not the same in two heads, ``torch was 2.12 and is 2.13``; the command and the times may differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))]
    return [] if before == now else [f"{name} was {before!r} and is {now!r}"]
