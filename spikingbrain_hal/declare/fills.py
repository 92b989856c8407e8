"""How conformance cases fill inputs: values of the kind that an argument takes, the nasty ones among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Arguments = Mapping[str, Any]
Fill = Callable[[tuple[int, ...], Arguments, Generator], Tensor]
FILLS: dict[str, Fill] = {}


def fill(function: Fill) -> Fill:
    """Registers values under the function's name, by which an input asks for them."""
    FILLS[getattr(function, "__name__", "")] = function
    return function


@fill
def normal(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


@fill
def log_decay(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Mostly slow decay, a share that all but forgets, a share that forgets nothing."""
    gate = F.logsigmoid(2.0 + 1.5 * torch.randn(shape, generator=generator))
    kind = torch.rand(shape, generator=generator)
    return torch.where(kind < 0.05, 30 * gate - 8, torch.where(kind > 0.98, 0.0, gate))


@fill
def unit(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


@fill
def threshold(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return 0.5 + torch.rand(shape, generator=generator)


@fill
def offsets(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return F.pad(torch.tensor(a["ragged"]).cumsum(0), (1, 0))


@fill
def lengths(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Both ends of the range first."""
    lengths = torch.randint(0, a["limit"] + 1, shape, generator=generator)
    lengths[:2] = torch.tensor([a["limit"], 0])[: lengths.numel()]
    return lengths


@fill
def slots(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Distinct, and where there is more than one row the last is skipped."""
    slots = torch.randperm(a["slot"], generator=generator)[: shape[0]]
    slots[1:][-1:] = -1
    return slots
