"""How conformance cases fill inputs: values of the kind that an argument takes, the nasty ones among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .coding import bounds

Arguments = Mapping[str, Any]
Fill = Callable[[tuple[int, ...], Arguments, Generator], Tensor]


def _normal(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _current(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Strong enough that neurons fire often, on a grid so coarse that many potentials hit their threshold exactly.

    Where potentials have a floor the last neuron gets a NaN halfway, which neither fires nor stops at the floor.
    """
    current = (4.0 + 6.0 * torch.randn(shape, generator=generator)).round() / 4
    if a.get("v_min", -torch.inf) > -torch.inf and current.numel():
        current[shape[0] // 2].view(-1)[-1] = torch.nan
    return current


def _log_decay(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Mostly slow decay, a share that all but forgets, a share that forgets nothing."""
    gate = F.logsigmoid(2.0 + 1.5 * torch.randn(shape, generator=generator))
    kind = torch.rand(shape, generator=generator)
    return torch.where(kind < 0.05, 30 * gate - 8, torch.where(kind > 0.98, 0.0, gate))


def _activations(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
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


def _unit(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _threshold(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return 0.5 + torch.rand(shape, generator=generator)


def _counts(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    low, high = bounds(a["coding"], a["timesteps"])
    counts = torch.randint(low, high + 1, shape, generator=generator)
    counts.reshape(-1)[:2] = torch.tensor([low, high])[: counts.numel()]
    return counts


def _trains(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    signed = a["coding"] in ("ternary", "bitwise_signed")
    return torch.randint(-1 if signed else 0, 2, shape, generator=generator)


def _offsets(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    return F.pad(torch.tensor(a["ragged"]).cumsum(0), (1, 0))


def _lengths(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Both ends of the range first."""
    lengths = torch.randint(0, a["limit"] + 1, shape, generator=generator)
    lengths[:2] = torch.tensor([a["limit"], 0])[: lengths.numel()]
    return lengths


def _slots(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Distinct, and where there is more than one row the last is skipped."""
    slots = torch.randperm(a["slot"], generator=generator)[: shape[0]]
    slots[1:][-1:] = -1
    return slots


def _long_tailed(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Small counts in most rows; now and then a few beyond 8 bits, a row of zeros, a row over the whole range."""
    counts = (4 * torch.randn(shape, generator=generator)).round()
    rows = counts.reshape(-1, shape[-1]) if counts.numel() else counts.new_empty(0, 1)
    rows[::16, :5] = torch.tensor([32767.0, -129.0, 128.0, -128.0, -32768.0])[: rows.shape[-1]]
    rows[2::16] = 0
    whole = rows[7::16]
    whole.copy_(torch.randint(-32768, 32768, whole.shape, generator=generator))
    return counts


def _codes(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Of an 8-bit quantizer that clamps nothing; one output in 16 holds the largest there are, where counts do too.

    Narrower types wrap.
    """
    codes = torch.randint(-200, 201, shape, generator=generator)
    codes[3::16, :5] = torch.tensor([32767, -32768, 1, 1, -32768])[: shape[1]]
    return codes


def _count_threshold(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Brings rows of all sizes to one, so that none hides another's error."""
    size: Tensor = a["counts"].double().square().mean(-1, keepdim=True).sqrt().clamp(min=1)
    return (0.5 + torch.rand(shape, generator=generator)) / torch.nan_to_num(size, nan=1.0)


def _code_scales(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """The same for groups of codes."""
    size: Tensor = a["weight"].double().reshape(*shape, a["group_size"]).square().mean(-1).sqrt().clamp(min=1)
    return (0.5 + torch.rand(shape, generator=generator)) / size


FILLS: Mapping[str, Fill] = {
    "normal": _normal,
    "current": _current,
    "log_decay": _log_decay,
    "activations": _activations,
    "unit": _unit,
    "threshold": _threshold,
    "counts": _counts,
    "trains": _trains,
    "offsets": _offsets,
    "lengths": _lengths,
    "slots": _slots,
    "long_tailed": _long_tailed,
    "codes": _codes,
    "count_threshold": _count_threshold,
    "code_scales": _code_scales,
}
