"""Spike codings: which trains of -1, 0 and 1 stand for an integer count."""

from __future__ import annotations

import torch
from torch import Tensor

CODINGS = ("binary", "ternary", "bitwise", "bitwise_signed", "twos_complement")
BIT_ORDERS = ("msb", "lsb")
MAX_COUNT = 32767


def bounds(coding: str, timesteps: int) -> tuple[int, int]:
    """The smallest and largest count that this many steps can carry."""
    ones = 2 ** min(timesteps, 17) - 1
    low, high = {
        "binary": (0, timesteps),
        "ternary": (-timesteps, timesteps),
        "bitwise": (0, ones),
        "bitwise_signed": (-ones, ones),
        "twos_complement": (-(ones // 2) - 1, ones // 2),
    }[coding]
    return max(low, -MAX_COUNT - 1), min(high, MAX_COUNT)


def timesteps_needed(coding: str, low: int, high: int) -> int:
    """The fewest steps, at least one, that carry every count from low to high."""
    largest = max(abs(low), abs(high))
    if coding in ("binary", "ternary"):
        return max(largest, 1)
    if coding == "twos_complement":
        return max(high.bit_length() if high > 0 else 0, (-low - 1).bit_length() if low < 0 else 0) + 1
    return max(largest.bit_length(), 1)


def shifts(timesteps: int, bit_order: str, dims: int, device: torch.device) -> Tensor:
    """The bit that each step carries, shaped to broadcast over ``dims`` further axes."""
    steps = torch.arange(timesteps, device=device)
    steps = steps.flip(0) if bit_order == "msb" else steps
    return steps.reshape(-1, *[1] * dims)
