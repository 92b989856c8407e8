"""Values that cases fill the inputs of linear layers on counts with, the nasty ones among them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...declare.fills import Arguments, fill


@fill
def long_tailed(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Small counts in most rows; now and then a few beyond 8 bits, a row of zeros, a row over the whole range."""
    counts = (4 * torch.randn(shape, generator=generator)).round()
    rows = counts.reshape(-1, shape[-1]) if counts.numel() else counts.new_empty(0, 1)
    rows[::16, :5] = torch.tensor([32767.0, -129.0, 128.0, -128.0, -32768.0])[: rows.shape[-1]]
    rows[2::16] = 0
    whole = rows[7::16]
    whole.copy_(torch.randint(-32768, 32768, whole.shape, generator=generator))
    return counts


@fill
def codes(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Of an 8-bit quantizer that clamps nothing; one output in 16 holds the largest there are, where counts do too.

    Narrower types wrap.
    """
    codes = torch.randint(-200, 201, shape, generator=generator)
    codes[3::16, :5] = torch.tensor([32767, -32768, 1, 1, -32768])[: shape[1]]
    return codes


@fill
def count_threshold(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Brings rows of all sizes to one, so that none hides another's error."""
    size: Tensor = a["counts"].double().square().mean(-1, keepdim=True).sqrt().clamp(min=1)
    return (0.5 + torch.rand(shape, generator=generator)) / torch.nan_to_num(size, nan=1.0)


@fill
def code_scales(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """The same for groups of codes."""
    size: Tensor = a["weight"].double().reshape(*shape, a["group_size"]).square().mean(-1).sqrt().clamp(min=1)
    return (0.5 + torch.rand(shape, generator=generator)) / size
