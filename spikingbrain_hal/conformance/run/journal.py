"""A run written down as it goes, so that one that was interrupted, however, can be continued."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ..verdict.record import Record

FORMAT = 1
NAME = "results.jsonl"


class Journal:
    """``results.jsonl``: a line that says what is run on what, then one for each record, in the order they came.

    A problem beyond single cases has a line too, and so has a case that was lost and is to run again, alone. Records
    are as the cases ended: waivers apply to what is read. While a journal is open, no other run can open its file.

    Args:
        file: The file, open to append.
        options: What was asked for.
        about: The head of the report, as it comes out of JSON.

    Attributes:
        path: Where it is.
        records: What an interrupted run has left, by id.
        suspects: Cases that it was to run again, alone, and has no record of.
        problems: Likewise.
    """

    def __init__(self, file: TextIO, options: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path, self.options, self.about = Path(file.name), options, about
        self.records: dict[str, Record] = {}
        self.suspects: dict[str, Record] = {}
        self.problems: list[str] = []
        self._file = file

    @staticmethod
    def begin(folder: Path, options: Mapping[str, Any], about: Mapping[str, Any]) -> Journal:
        """Starts a new one in this folder, in place of one that is there.

        Raises:
            ValueError: Another run writes the one that is there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(_opened(folder), options, about)
        journal._file.truncate(0)
        journal._write({"format": FORMAT, "options": options, "about": about})
        return journal

    @staticmethod
    def resume(folder: Path) -> Journal:
        """Opens the one in this folder; a last line that was cut off while it was written is dropped.

        Raises:
            ValueError: There is none, it is not one, or another run writes it.
        """
        if not (folder / NAME).is_file():
            raise ValueError(f"cannot resume {folder}: there is no {NAME} in it")
        file = _opened(folder)
        text = (folder / NAME).read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            head, *lines = _lines(whole)
            if head["format"] != FORMAT:
                raise ValueError(f"its format is {head['format']}, this version writes {FORMAT}")
            journal = Journal(file, head["options"], head["about"])
            for line in lines:
                journal._recall(line)
        except (KeyError, TypeError, ValueError) as error:
            file.close()
            raise ValueError(f"cannot resume {folder}: {NAME} is damaged: {error}") from error
        file.truncate(len(whole))
        return journal

    def _recall(self, line: Mapping[str, Any]) -> None:
        if "problem" in line:
            self.problems.append(line["problem"])
        elif "suspect" in line:
            suspect = Record.from_dict(line["suspect"])
            self.suspects[suspect.id] = suspect
        else:
            record = Record.from_dict(line)
            self.records[record.id] = record
            self.suspects.pop(record.id, None)

    def add(self, record: Record) -> None:
        """Writes a record at once."""
        self._write(record.as_dict())

    def add_suspect(self, record: Record) -> None:
        """Writes at once that a case was lost in this way and is to run again, alone."""
        self._write({"suspect": record.as_dict()})

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


def _opened(folder: Path) -> TextIO:
    """The file, to append to; nothing of it is changed before it is sure that no other run writes it."""
    file = (folder / NAME).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"another run writes {folder / NAME}: wait for its end, or name another folder") from error
    except OSError:
        pass  # a file system without locks
    return file


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
