"""Memory that ends where a tensor ends: reading or writing one element past it kills the process."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...declare.inputs import poison
from ...declare.spec import OpSpec
from ..verdict.truth import each
from .target import GUARD, Launch, Target

SIDES = ("after", "before")
ALIGNMENT = 256  # of workspace, whose end is therefore up to 255 bytes before the guard
_PROT_NONE = 0
_MAP_NORESERVE = 0x4000  # of Linux on x86-64 and aarch64; the module mmap names it from Python 3.13 on
_libc = ctypes.CDLL(None, use_errno=True)


class Mapping:
    """Anonymous memory whose untouched pages cost nothing.

    Args:
        size: Bytes, rounded up to whole pages.

    Attributes:
        bytes: All of it, uint8. It is unmapped when this tensor and every view of it are gone.

    Raises:
        MemoryError: The system does not map that much.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._memory = mmap.mmap(-1, self.size, flags=flags)
        except OSError as error:
            raise MemoryError(f"the system does not map {self.size} bytes: {error}") from error
        self.bytes = torch.frombuffer(self._memory, dtype=torch.uint8)

    def forbid(self, start: int, size: int) -> None:
        """Makes whole pages unreadable and unwritable."""
        address = ctypes.c_void_p(self.bytes.data_ptr() + start)
        if _libc.mprotect(address, ctypes.c_size_t(size), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect failed")


def guarded_empty(shape: Sequence[int], dtype: torch.dtype, side: str, alignment: int = 1) -> Tensor:
    """A contiguous tensor on the host, uninitialised, with an inaccessible page directly on one of its sides.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        side: ``"after"``: its last byte is the last that can be read; ``"before"``: its first is the first.
        alignment: Of its address; with ``"after"`` the guard moves away by the remainder.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    mapping = Mapping(size + 2 * mmap.PAGESIZE)
    mapping.forbid(0, mmap.PAGESIZE)
    last = mapping.size - mmap.PAGESIZE
    mapping.forbid(last, mmap.PAGESIZE)
    start = mmap.PAGESIZE if side == "before" else (last - size) // alignment * alignment
    return mapping.bytes[start : start + size].view(dtype).view(tuple(shape))


def memory_beside(device: str, count: int, dtype: torch.dtype, side: str) -> Tensor:
    """Poisoned elements that end, or begin, where a page that cannot be read begins, or ends.

    Pages of other devices cannot be forbidden: there, what lies beside the elements is poison as well.
    """
    if device == "cpu":
        return poison(guarded_empty((count,), dtype, side))
    wide = poison(torch.empty(count + GUARD, dtype=dtype, device=device))
    return wide[:count] if side == "after" else wide[GUARD:]


class GuardedLaunch(Launch):
    """A direct call of a kernel all of whose memory, inputs too, lies beside :func:`memory_beside`'s guards."""

    def __init__(self, target: Target, spec: OpSpec, args: Sequence[Any], side: str) -> None:
        super().__init__(target, spec, args)
        self.side = side
        self.args = each(self.given, self._copied)

    def _copied(self, tensor: Tensor) -> Tensor:
        memory = memory_beside(self.target.device, tensor.numel(), tensor.dtype, self.side)
        return memory.view(tensor.shape).copy_(tensor)

    def _guarded(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.target.device != "cpu":
            return super()._guarded(name, shape, dtype)
        memory = guarded_empty(shape, dtype, self.side, ALIGNMENT if dtype == torch.uint8 else 1)
        self.fill(memory)
        return memory
