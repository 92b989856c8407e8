"""Values that cases fill the inputs of neurons with, the nasty ones among them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...declare.fills import Arguments, fill


@fill
def current(shape: tuple[int, ...], a: Arguments, generator: Generator) -> Tensor:
    """Strong enough that neurons fire often, on a grid so coarse that many potentials hit their threshold exactly.

    Where potentials have a floor the last neuron gets a NaN halfway, which neither fires nor stops at the floor.
    """
    current = (4.0 + 6.0 * torch.randn(shape, generator=generator)).round() / 4
    if a.get("v_min", -torch.inf) > -torch.inf and current.numel():
        current[shape[0] // 2].view(-1)[-1] = torch.nan
    return current
