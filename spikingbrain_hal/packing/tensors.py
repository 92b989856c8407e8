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
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20
LARGEST_HEADER = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class PackingError(ValueError):
    """A checkpoint cannot be packed, or a packed one is not what its source implies."""


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
        """The tensor; for small ones."""
        content = b"".join(self.bytes_in_blocks())
        if not content:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(bytearray(content), dtype=self.dtype).view(self.shape)

    def _read(self, file: int, offset: int, size: int) -> bytes:
        content = os.pread(file, size, self.start + offset)
        if len(content) != size:
            raise PackingError(f"{self.path} ends within {self.name}: the file was cut off")
        return content


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file, in the order of their places.

    Raises:
        PackingError: The file is missing, cut off, or no safetensors file.
    """
    if not path.is_file():
        raise PackingError(f"{path} is missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise PackingError(f"{path} is no safetensors file, or was cut off within its header ({size} bytes)")
        text = file.read(length)
    try:
        entries = {name: _entry(e) for name, e in json.loads(text).items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackingError(f"{path} has a header that is not safetensors': {error}") from None
    found, end = {}, 0
    for name, (dtype, shape, first, last) in sorted(entries.items(), key=lambda e: e[1][2:]):
        if dtype not in DTYPES:
            raise PackingError(f"{path}: {name} has dtype {dtype}, expected one of {', '.join(DTYPES)}")
        tensor = Stored(name, path, DTYPES[dtype], shape, 8 + length + first)
        if first != end or last - first != tensor.nbytes:
            raise PackingError(
                f"{path}: {name} lies at {first} to {last}, which its shape and its neighbours contradict"
            )
        found[name], end = tensor, last
    if size != 8 + length + end:
        raise PackingError(
            f"{path} has {size} bytes, its header promises {8 + length + end}: it was cut off or added to"
        )
    return found


def _entry(e: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    first, last = e["data_offsets"]
    return str(e["dtype"]), tuple(int(n) for n in e["shape"]), int(first), int(last)


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
