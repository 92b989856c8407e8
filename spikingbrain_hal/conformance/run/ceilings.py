"""The most that this machine does: products by the dtype of what is multiplied, and copies."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]

LEAST_SECONDS = 1e-3  # of one product: shorter ones time the call
TRIES = 2
SIZES = (512, 1024, 2048, 4096, 8192)
COPIED_AT_MOST = 1 << 28
# From 16 MiB on the C library writes around the caches; of itself it may take a cache that others share for its own.
STREAMING = "glibc.cpu.x86_non_temporal_threshold=0x1000000"
MULTIPLY: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]] = {
    torch.float32: torch.mm,
    torch.bfloat16: torch.mm,
    torch.float16: torch.mm,
    torch.int8: torch._int_mm,
}


@dataclass(frozen=True)
class Ceiling:
    """Work that a machine does as fast as it can.

    Attributes:
        name: ``"float32 products"``, ``"copy"``, ``"copy into fresh memory"``.
        amount: Of one run: operations, a product and its sum being two, or bytes read and written.
        ways: To do the same; the fastest counts.
    """

    name: str
    amount: float
    ways: tuple[Run, ...]

    def seconds(self, device: str, repeats: int = 1) -> float:
        """The time of one run, the best of a few: what else happens on a machine can only lower a ceiling."""
        return min(seconds(way, device, repeats) for _ in range(TRIES) for way in self.ways)


def seconds(run: Run, device: str, repeats: int = 1) -> float:
    """The time of one of several runs on a device that has nothing else to do."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - started) / repeats


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


class Ceilings:
    """The ceilings of one device.

    Args:
        device: The torch device type.
        threads: That a host multiplies and copies with, each on its own: where a machine is shared, those that wait for
            each other in the middle of a product are as slow as the slowest in each part of it.
    """

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self._count = threads if device == "cpu" else 1
        self._threads = ThreadPoolExecutor(self._count, initializer=lambda: torch.set_num_threads(1))
        self._source = torch.ones(COPIED_AT_MOST, dtype=torch.uint8, device=device)
        self._target = torch.ones_like(self._source[: COPIED_AT_MOST // 2])
        self._products: dict[torch.dtype, Ceiling | None] = {}

    def products(self, dtype: torch.dtype) -> Ceiling | None:
        """Torch's product of two large matrices, None where torch has none that is made for the dtype."""
        if dtype not in self._products:
            self._products[dtype] = self._product(dtype)
        return self._products[dtype]

    def _product(self, dtype: torch.dtype) -> Ceiling | None:
        multiply = MULTIPLY.get(dtype)
        if multiply is None:
            return None
        found = None
        for size in SIZES:
            a, b = (_filled(size, dtype, self.device) for _ in range(2))
            found = Ceiling(_name(dtype), 2.0 * size**3 * self._count, (partial(self._at_once, multiply, a, b.t()),))
            try:
                found.seconds(self.device)
            except (RuntimeError, NotImplementedError):
                return None
            if found.seconds(self.device) >= LEAST_SECONDS:
                break
        return found

    def copy(self, read: int, written: int, fresh: bool) -> Ceiling:
        """A copy that reads and writes as many bytes together, and so lies in the same cache, or in none.

        Args:
            read, written: How many. Past 256 MiB in all, beyond any cache, as many as that in the same proportion.
            fresh: Whether what is written lies in memory that is taken anew each time, and is no more than ``written``.
        """
        scale = min(1.0, COPIED_AT_MOST / max(1, read + written))
        read, written = max(1, int(scale * read)), max(1, int(scale * written))
        if not fresh:
            read = written = (read + written) // 2
        both = min(read, written)
        rest = (read - both) // 2  # is read and written, where the other copy would write too much

        def run(move: Callable[[Tensor, Tensor], Any]) -> None:
            target = torch.empty(written, dtype=torch.uint8, device=self.device) if fresh else self._target[:written]
            move(target[:both], self._source[:both])
            target[both:].fill_(1)
            move(self._target[:rest], self._source[both : both + rest])

        ways: tuple[Run, ...] = (partial(run, Tensor.copy_),)
        if self.device == "cpu":
            ways += (partial(run, self._move),)
        return Ceiling("copy into fresh memory" if fresh else "copy", float(read + written), ways)

    def _move(self, target: Tensor, source: Tensor) -> None:
        """The C library's copy, which writes around the caches where much is copied, as kernels may."""
        edges = [source.numel() * i // self._count for i in range(self._count + 1)]
        to, start = target.data_ptr(), source.data_ptr()
        moves = [self._threads.submit(ctypes.memmove, to + a, start + a, b - a) for a, b in pairwise(edges) if b > a]
        for move in moves:
            move.result()

    def _at_once(self, multiply: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> None:
        """The same product in every thread."""
        if self.device != "cpu":
            multiply(a, b)
            return
        for product in [self._threads.submit(multiply, a, b) for _ in range(self._count)]:
            product.result()


def narrowest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype of fewest bytes: the machine may multiply as fast as that allows."""
    return min((t.dtype for t in tensors), key=lambda dtype: dtype.itemsize)


def _name(dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} products"


def _filled(size: int, dtype: torch.dtype, device: str) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(size, size, device=device).to(dtype)
    return torch.randint(-100, 100, (size, size), dtype=dtype, device=device)
