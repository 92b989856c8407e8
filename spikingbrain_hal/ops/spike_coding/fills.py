"""Values that cases fill the inputs of spike coding with, the nasty ones among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ...declare.fills import Arguments, fill
from .coding import bounds


@fill
def activations(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Rows of every kind a threshold must cope with: one-signed, ties, zeros, huge, infinite, NaN; most are normal."""
    x = torch.randn(shape, generator=generator)
    rows = x.reshape(-1, shape[-1]) if x.numel() else x.new_empty(0, 1)
    width = rows.shape[-1]
    ties = a["k"] - 0.5 + torch.arange(width) % 2  # half counts exactly, as the mean is k and the threshold 1
    ties[width // 2 * 2 :] = a["k"]
    special: Sequence[Callable[[Tensor], Any]] = (
        lambda row: row.abs_(),
        lambda row: row.copy_(ties),
        lambda row: row.zero_(),
        lambda row: row.mul_(1e9),
        lambda row: row[:1].fill_(torch.inf),
        lambda row: row[-1:].fill_(torch.nan),
    )
    for i in range(1, rows.shape[0], 2):
        special[i // 2 % len(special)](rows[i])
    return x


@fill
def counts(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    low, high = bounds(a["coding"], a["timesteps"])
    counts = torch.randint(low, high + 1, shape, generator=generator)
    counts.reshape(-1)[:2] = torch.tensor([low, high])[: counts.numel()]
    return counts


@fill
def trains(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    signed = a["coding"] in ("ternary", "bitwise_signed")
    return torch.randint(-1 if signed else 0, 2, shape, generator=generator)
