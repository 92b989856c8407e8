"""Spike trains by NumPy, which reads and writes torch's memory in place, as any library that takes pointers can."""

from typing import Any

import numpy as np
from torch import Tensor

from spikingbrain_hal import Kernel
from spikingbrain_hal.declare.registry import OPERATORS

EXPAND, COLLAPSE = OPERATORS["spike_expand"], OPERATORS["spike_collapse"]
FARTHEST_BIT = 40  # a shift by 64 or more means nothing to NumPy, and all these bits are the sign


def bits_of_steps(steps: int, bit_order: str, dims: int) -> np.ndarray:
    """Which bit each step carries, beside ``dims`` axes of elements."""
    bits = np.arange(steps)[:: -1 if bit_order == "msb" else 1]
    return np.minimum(bits, FARTHEST_BIT).reshape(-1, *[1] * dims)


def expand_plan(*args: Any) -> int:
    EXPAND.check(args)
    return 0


def expand(
    counts: Tensor,
    coding: str,
    timesteps: int,
    bit_order: str,
    trains: Tensor,
    workspace: None,
    stream: int,
    threads: int,
) -> None:
    EXPAND.check_contents((counts, coding, timesteps, bit_order))
    n = counts.numpy().astype(np.int64)
    if coding in ("binary", "ternary"):
        spent = np.arange(timesteps).reshape(-1, *[1] * n.ndim)
        trains.numpy()[...] = (np.abs(n) > spent) * np.sign(n)
        return
    signed = coding == "bitwise_signed"
    bits = ((np.abs(n) if signed else n) >> bits_of_steps(timesteps, bit_order, n.ndim)) & 1
    trains.numpy()[...] = bits * np.sign(n) if signed else bits


def collapse_plan(*args: Any) -> int:
    COLLAPSE.check(args)
    return 0


def collapse(trains: Tensor, coding: str, bit_order: str, counts: Tensor, *_launch: Any) -> None:
    COLLAPSE.check_contents((trains, coding, bit_order))
    t = trains.numpy().astype(np.int64)
    if coding not in ("binary", "ternary"):
        bits = bits_of_steps(len(t), bit_order, t.ndim - 1)
        weights = 1 << bits
        t *= np.where(bits == bits.max(), -weights, weights) if coding == "twos_complement" else weights
    counts.numpy()[...] = t.sum(0)


KERNELS = {
    "spike_expand": Kernel(expand_plan, expand, version=1),
    "spike_collapse": Kernel(collapse_plan, collapse, version=1),
}
