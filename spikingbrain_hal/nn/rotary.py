"""Rotary position embedding, halves rotated against each other."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of each pair of channels at each position.

    Args:
        positions: Positions of the tokens, [...], any integer dtype.
        dim: Channels of a head, D, even.
        theta: Base of the wavelengths; pair i turns by ``theta ** (-2i / D)`` radians a token.
        dtype: Of the result; the angles themselves are float64.

    Returns:
        Two tensors [..., 1, D / 2], which broadcast over heads.
    """
    half = dim // 2
    # float64: at position 200 000 a float32 angle is off by a hundredth of a radian
    wave = theta ** (-torch.arange(half, dtype=torch.float64, device=positions.device) / half)
    angle = positions.double()[..., None, None] * wave
    return angle.cos().to(dtype), angle.sin().to(dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of channels (i, i + D/2) of x, [..., T, H, D], by the given :func:`rotary_angles`.

    The result has x's dtype, also where the angles have a wider one, as they do under autocast.
    """
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


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
    positions = torch.arange(position, position + x.shape[1], device=x.device)
    return turn(x, *rotary_angles(positions, x.shape[-1], theta, x.dtype))
