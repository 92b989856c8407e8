"""Files that strangers wrote: bounded reading, JSON, and names of other files."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

DIGITS = 300  # of a whole number; what is longer may be more than a float can hold
BLOCK_BYTES = 1 << 20
DEPTH = 64  # of lists and objects within each other
NAME_BYTES = 255  # of a file's name, on every common file system


class Readable(Protocol):
    """An open file, or what unpacks one."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; none at the end."""
        ...


def read_bytes(path: Path, most: int) -> bytes:
    """As :func:`read_most`, for the file of a name."""
    with path.open("rb") as file:
        return read_most(file, most, path)


def read_most(file: Readable, most: int, source: object) -> bytes:
    """What an open file holds, of which no more than ``most`` bytes are read, in memory for as many as there are.

    Args:
        file: The file, or what unpacks one.
        most: How much it may hold, in bytes.
        source: Its name, for errors.

    Raises:
        ValueError: It holds more.
        OSError: It cannot be read.
    """
    content = bytearray()
    while part := file.read(BLOCK_BYTES):
        content += part
        if len(content) > most:
            raise ValueError(f"{source} holds more than {most:,} bytes, which no such file does")
    return bytes(content)


def is_inside(name: object) -> bool:
    """Whether a name stays within the folder it is relative to, and is written in one way only.

    It's the name that is judged: the file may well be a link, as all are in the hub's cache.
    """
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    path = PurePosixPath(name)
    plain = name == str(path) and name != "." and not path.is_absolute() and ".." not in path.parts
    return plain and all(len(part.encode()) <= NAME_BYTES for part in path.parts)


def parse_json(text: bytes | str, source: object) -> Any:
    """The value of a JSON text that every reader reads alike.

    Args:
        text: The text, in UTF-8 if bytes.
        source: Its name, for errors.

    Raises:
        ValueError: It is not JSON, a key occurs twice in an object, a number is not finite or too long, or lists and
            objects lie more than ``DEPTH`` deep.
    """
    try:
        data = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
        if _is_deep(data):
            raise ValueError(f"lists and objects lie more than {DEPTH} deep")
    except RecursionError:
        raise ValueError(f"{source} is not JSON: lists and objects lie more than {DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits, more than {DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:32]} is more than a float can hold")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice[:64]!r} is there twice")
    return found


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(DEPTH):
        level = [
            value
            for holder in level
            if isinstance(holder, (dict, list))
            for value in (holder.values() if isinstance(holder, dict) else holder)
        ]
    return any(isinstance(value, (dict, list)) for value in level)
