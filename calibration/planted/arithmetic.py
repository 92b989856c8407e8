"""Roundings that kernels do on purpose or by mistake, and the reference to change one thing of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal.declare.registry import OPERATORS

from . import Arguments


def reference(op: str, a: Arguments, **changed: Any) -> Any:
    """The reference's results for arguments of which some are replaced."""
    return OPERATORS[op].reference(*(a | changed).values())


def in_float64(op: str, a: Arguments) -> Any:
    """The reference in float64; writing a result into its output rounds it, once."""
    return reference(
        op, {n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in a.items()}
    )


def same(t: Tensor) -> Tensor:
    """No rounding."""
    return t


def to_bfloat16(t: Tensor) -> Tensor:
    """Rounded to bfloat16, the dtype kept."""
    return t.bfloat16().to(t.dtype)


def split_bfloat16(t: Tensor) -> Tensor:
    """Two bfloat16 numbers for one float32: what a matrix unit without float32 can do."""
    high = to_bfloat16(t)
    return high + to_bfloat16(t - high)


def to_tf32(t: Tensor) -> Tensor:
    """Truncated to the 10 bits of mantissa that a TF32 multiplier reads."""
    return (t.float().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32).to(t.dtype)


def wrapped(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers as a narrower register holds them, the dtype kept."""
    return t.long().to(dtype).to(t.dtype)
