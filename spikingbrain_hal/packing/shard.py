"""One packed file: which tensors it holds, and how it is written."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.tensors import NAMES, Stored, content_of, header_bytes
from .codes import code_blocks, narrowest
from .source import Copied, Linear

Part = Copied | Linear
Advance = Callable[[str, int], None]
"""Is told a tensor's name and how many bytes of the source were read since the last call."""


def part_bytes(part: Part, code: torch.dtype) -> int:
    """Bytes of a part's packed tensors if its integers have the dtype ``code``."""
    if isinstance(part, Copied):
        return part.tensor.nbytes
    out, inputs = part.shape
    return out * inputs * code.itemsize + out * (inputs // part.group_size) * torch.float32.itemsize


def source_bytes(part: Part) -> int:
    """Bytes of a part in its source, as ``Advance`` is told of them."""
    return part.tensor.nbytes if isinstance(part, Copied) else part.weight.nbytes


def block_bytes(part: Linear, first: int, rows: int) -> int:
    """The share of ``source_bytes`` that a block of rows stands for; the shares of all rows add up to it."""
    size, out = source_bytes(part), part.shape[0]
    return size * (first + rows) // out - size * first // out


def divide(parts: Sequence[Part], shard_bytes: int) -> list[list[Part]]:
    """Parts in order, in as few files as keep each within shard_bytes even if every integer takes two bytes.

    A part that is larger by itself has a file of its own.
    """
    shards: list[list[Part]] = []
    room = 0
    for part in parts:
        size = part_bytes(part, torch.int16)
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(part)
        room -= size
    return shards


@dataclass
class _Place:
    """A tensor of the file; dtype and offset of integers are known once they are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes a file, one tensor at a time.

    The integers' dtype is known only once all of them are, so they follow the other tensors and the header is written
    last, over room left for its longest form. Wider elements come first: a reader may need them aligned.

    Args:
        path: The file, which is overwritten.
        parts: What it holds.
    """

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self.path, self.parts = path, parts
        self.records: dict[str, dict[str, Any]] = {}
        fixed: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        codes: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        for part in parts:
            if isinstance(part, Copied):
                fixed.append((part.name, part.tensor.dtype, part.tensor.shape))
            else:
                out, inputs = part.shape
                fixed.append((part.name + ".scales", torch.float32, (out, inputs // part.group_size)))
                codes.append((part.name + ".codes", torch.int16, part.shape))
        wide = sorted((e for e in fixed if e[1].itemsize > 1), key=lambda e: -e[1].itemsize)
        self.places: dict[str, _Place] = {}
        end = 0
        for name, dtype, shape in (*wide, *codes, *(e for e in fixed if e[1].itemsize == 1)):
            self.places[name] = _Place(dtype, shape, end)
            end += self.places[name].nbytes
        self.end = sum(self.places[name].nbytes for name, _, _ in wide)  # of what is in place; integers go on here
        self.header_size = len(self._header())

    def write(self, advance: Advance) -> dict[str, dict[str, Any]]:
        """Writes all tensors.

        Returns:
            Of each tensor its dtype, shape and SHA-256.
        """
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            narrow = [p for p in self.parts if isinstance(p, Copied) and p.tensor.dtype.itemsize == 1]
            for part in self.parts:
                if isinstance(part, Linear):
                    self._write_linear(part, advance)
                elif part.tensor.dtype.itemsize > 1:
                    self._copy(part.name, part.tensor, advance)
            for part in narrow:
                self.places[part.name].offset = self.end
                self._copy(part.name, part.tensor, advance)
                self.end += part.tensor.nbytes
            self._write_at(0, memoryview(self._header(self.header_size)))
            os.fsync(self.file)
        finally:
            os.close(self.file)
        return self.records

    def _header(self, size: int = 0) -> bytes:
        return header_bytes({n: (p.dtype, p.shape, p.offset) for n, p in self.places.items()}, size)

    def _copy(self, name: str, tensor: Stored, advance: Advance) -> None:
        digest, offset = hashlib.sha256(), self.header_size + self.places[name].offset
        for block in tensor.bytes_in_blocks():
            digest.update(block)
            offset = self._write_at(offset, memoryview(block))
            advance(name, len(block))
        self._record(name, digest.hexdigest())

    def _write_linear(self, part: Linear, advance: Advance) -> None:
        out, inputs = part.shape
        codes = torch.empty(out, inputs, dtype=torch.int16)
        scales = torch.empty(out, inputs // part.group_size)
        for first, block, their_scales in code_blocks(part):
            codes[first : first + len(block)] = block
            scales[first : first + len(block)] = their_scales
            advance(part.name, block_bytes(part, first, len(block)))
        codes = narrowest(codes)
        place = self.places[part.name + ".codes"]
        place.dtype, place.offset = codes.dtype, self.end
        self.end += codes.nbytes
        for name, tensor in ((".scales", scales), (".codes", codes)):
            content = content_of(tensor)
            self._write_at(self.header_size + self.places[part.name + name].offset, content)
            self._record(part.name + name, hashlib.sha256(content).hexdigest())

    def _record(self, name: str, digest: str) -> None:
        place = self.places[name]
        self.records[name] = {"dtype": NAMES[place.dtype], "shape": list(place.shape), "sha256": digest}

    def _write_at(self, offset: int, content: memoryview) -> int:
        while content:
            written = os.pwrite(self.file, content[: 1 << 30], offset)
            content, offset = content[written:], offset + written
        return offset
