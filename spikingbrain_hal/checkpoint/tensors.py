"""Safetensors files read and written a block at a time.

A file is the length of its header (8 bytes, little endian), the header (JSON: each tensor's dtype, shape and place,
padded with spaces) and the bytes of the tensors without gaps. The embedding of a 7B model alone is 2 GiB, so tensors
are never read whole, and files are not mapped into memory, where what has been read would count as used.

Source: the format's description, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from ..untrusted import parse_json

BLOCK_BYTES = 16 << 20
LARGEST_HEADER = 100_000_000
LARGEST_COUNT = 1 << 48  # of elements, far from where an offset in bytes would leave 64 bits
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """The files of a checkpoint are missing, damaged, or of another kind."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        name: Of the tensor.
        path: Of the file.
        dtype: Of the elements.
        shape: Of the tensor.
        start: Offset of its first byte in the file.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def bytes_in_blocks(self) -> Iterator[bytes]:
        """The tensor's bytes, at most BLOCK_BYTES at once."""
        with self.path.open("rb") as file:
            for done in range(0, self.nbytes, BLOCK_BYTES):
                yield self._read(file.fileno(), done, min(BLOCK_BYTES, self.nbytes - done))

    def row_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Rows of a matrix, about BLOCK_BYTES at once: the number of the first, and the rows."""
        rows, columns = self.shape
        pitch = columns * self.dtype.itemsize
        step = max(1, BLOCK_BYTES // pitch)
        with self.path.open("rb") as file:
            for first in range(0, rows, step):
                count = min(step, rows - first)
                content = bytearray(self._read(file.fileno(), first * pitch, count * pitch))
                yield first, torch.frombuffer(content, dtype=self.dtype).view(count, columns)

    def whole(self) -> Tensor:
        """The tensor, read at once."""
        content = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            place, done = content.numpy().data, 0
            while count := file.readinto(place[done : done + BLOCK_BYTES]):
                done += count
        if done != self.nbytes:
            raise self._cut_off()
        return content.view(self.dtype).view(self.shape)

    def _read(self, file: int, offset: int, size: int) -> bytes:
        content = os.pread(file, size, self.start + offset)
        if len(content) != size:
            raise self._cut_off()
        return content

    def _cut_off(self) -> CheckpointError:
        return CheckpointError(f"{self.path} ends within {self.name}: the file was cut off")


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file, in the order of their places.

    Raises:
        CheckpointError: The file is missing, cut off, or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise CheckpointError(f"{path} is no safetensors file, or was cut off within its header ({size} bytes)")
        text = file.read(length)
    try:
        entries = _entries(text)
    except ValueError as error:
        raise CheckpointError(f"{path} has a header that is not safetensors': {error}") from None
    found, end = {}, 0
    for name, (dtype, shape, first, last) in sorted(entries.items(), key=lambda e: e[1][2:]):
        tensor = Stored(name, path, dtype, shape, 8 + length + first)
        if first != end or last - first != tensor.nbytes:
            raise CheckpointError(
                f"{path}: {short(name)} lies at {first} to {last}, which its shape and its neighbours contradict"
            )
        found[name], end = tensor, last
    if size != 8 + length + end:
        raise CheckpointError(
            f"{path} has {size} bytes, its header promises {8 + length + end}: it was cut off or added to"
        )
    return found


def _entries(text: bytes) -> dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]:
    """Dtype, shape, and first and last offset of each tensor, as a header says them."""
    header = parse_json(text, "it") if text[:1] == b"{" else None
    if not isinstance(header, dict):
        raise ValueError("it is no object")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("__metadata__ is not text by name")
    return {name: _entry(name, entry) for name, entry in header.items()}


def _entry(name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{short(name)} is {short(entry)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{short(name)} has dtype {short(dtype)}, expected one of {', '.join(DTYPES)}")
    for key, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{short(name)} has {key} {short(numbers)}, expected whole numbers from 0 on")
    if math.prod(n or 1 for n in shape) > LARGEST_COUNT:
        raise ValueError(f"{short(name)} has shape {short(shape)}, more than {LARGEST_COUNT:,} elements")
    if len(offsets) != 2:
        raise ValueError(f"{short(name)} has {len(offsets)} data_offsets, expected two")
    return DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def header_bytes(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]], size: int = 0) -> bytes:
    """A file's first bytes, up to the tensors'.

    Args:
        tensors: Dtype, shape and offset after the header of each tensor, without gaps between them.
        size: Bytes to fill with spaces, a multiple of 8; as few as it takes if absent.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape, offset) in tensors.items():
        last = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, last]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    size = size or 8 + -(-len(text) // 8) * 8
    return struct.pack("<Q", size - 8) + text.ljust(size - 8)


def content_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")
