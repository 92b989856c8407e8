"""Rotary position embedding, halves rotated against each other."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Turns each pair of channels (i, i + D/2) by an angle that grows with its position.

    Args:
        x: Queries or keys, [B, T, H, D], D even.
        position: Position of the first of the T tokens.
        theta: Base of the wavelengths; pair i turns by ``theta ** (-2i / D)`` radians a token.

    Returns:
        The turned x, same shape and dtype.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34, with the pairing of GPT-NeoX.
    """
    half = x.shape[-1] // 2
    # float64: at position 200 000 a float32 angle is off by a hundredth of a radian
    wave = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    place = torch.arange(position, position + x.shape[1], dtype=torch.float64, device=x.device)
    angle = place[:, None, None] * wave
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
