"""What a packed folder records of itself: where it comes from, which files are finished, what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, get_origin, get_type_hints

from ..checkpoint import Stored
from ..checkpoint.folder import read_object
from ..checkpoint.tensors import NAMES, read_header
from ..untrusted import is_inside
from .source import PackingError, Source

FORMAT_VERSION = 1
MANIFEST = "packing.json"
UNFINISHED = ".part"


@dataclass
class Manifest:
    """The content of ``packing.json``.

    Attributes:
        source: Size and time of change (ns) of each file of tensors that is packed.
        kind: ``"w8aspike"`` or ``"float"``.
        group_size: Inputs that share a scale.
        down_proj: Whether the down projections are packed too.
        shard_bytes: Bound of the files' size.
        shards: Of each finished file its tensors: dtype, shape and SHA-256.
        finished: Whether all is written.
        format_version: Of this file and of the layout.
    """

    source: dict[str, list[int]]
    kind: str
    group_size: int
    down_proj: bool
    shard_bytes: int
    shards: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    finished: bool = False
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, source: Source, group_size: int, down_proj: bool, shard_bytes: int) -> Manifest:
        """The record of a packing that has not begun."""
        files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in source.files}
        return cls(files, source.kind, group_size, down_proj, shard_bytes)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads a folder's record.

        Raises:
            CheckpointError: There is none, or it is of another version or none of ours.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise PackingError(f"{folder} has no {MANIFEST}, expected a folder that sbhal pack has written")
        content = read_object(path)
        version = content.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise PackingError(f"{path} has format_version {short(version)}, expected {FORMAT_VERSION}")
        if problem := next(_problems(content), None):
            raise PackingError(f"{path} is no record of a packing: {problem}")
        return cls(**content)

    def write(self, folder: Path) -> None:
        """Replaces a folder's record, at once or not at all."""
        write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=1).encode())

    def require_same(self, other: Manifest, folder: Path) -> None:
        """Asserts that a run with the record ``other`` may go on with what this one began.

        Raises:
            PackingError: They differ in the source or in an option.
        """
        for name in ("source", "kind", "group_size", "down_proj", "shard_bytes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                what = "its source has changed since, or is another" if name == "source" else f"{name} was {mine}"
                given = "" if name == "source" else f", now it is {theirs}"
                raise PackingError(f"DST, {folder}, was begun otherwise: {what}{given}; choose another or remove it")


def _problems(content: dict[str, Any]) -> Iterator[str]:
    """Where a record is not as :class:`Manifest` writes it."""
    kinds = {name: get_origin(kind) or kind for name, kind in get_type_hints(Manifest).items()}
    if content.keys() != kinds.keys():
        yield f"its keys are {short(sorted(content))}, expected {sorted(kinds)}"
        return
    for name, kind in kinds.items():
        if type(content[name]) is not kind:
            yield f"{name} is {short(content[name])}"
    for name, records in content["shards"].items():
        if not is_inside(name) or "/" in name:
            yield f"{short(name)} is no name of a file"
        if not isinstance(records, dict) or not all(_is_record(record) for record in records.values()):
            yield f"{short(name)} is {short(records)}"


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and record.keys() == {"dtype", "shape", "sha256"}


def read_shard(path: Path, records: dict[str, dict[str, Any]]) -> dict[str, Stored]:
    """The tensors of a finished file.

    Raises:
        CheckpointError: The file is missing, cut off, or does not hold what is recorded.
    """
    found = read_header(path)
    shown = {name: (NAMES[tensor.dtype], list(tensor.shape)) for name, tensor in found.items()}
    if shown != {name: (r["dtype"], r["shape"]) for name, r in records.items()}:
        raise PackingError(f"{path} does not hold the tensors that were written to it")
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, even if the machine stops."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    publish(unfinished, path)


def publish(unfinished: Path, path: Path) -> None:
    """Gives a file that is on disk its name."""
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
