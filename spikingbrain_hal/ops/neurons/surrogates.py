"""Surrogate derivatives: what a spike's derivative is taken to be, as a function of the distance to the threshold.

Each is taken as it is written at infinite and NaN potentials too, which no comparison holds for.

In each, u is the potential less the threshold (for counts, in units of the threshold, which is then 1); alpha and beta
are the parameters of :func:`~spikingbrain_hal.ops.lif_scan`. The families and their users: Fang et al. 2023,
arXiv:2310.16620 (SpikingJelly), Neftci et al. 2019, arXiv:1901.09948.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _WithSlope(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, u: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient, gradient * slope, None


def with_slope(value: Tensor, u: Tensor, slope: Tensor) -> Tensor:
    """``value`` with its own derivatives and ``slope`` as that by ``u`` beside them, also where u is infinite or NaN.

    Args:
        value: Any tensor.
        u: A tensor of the same shape.
        slope: The derivative, of the same shape, without a gradient of its own.
    """
    function: Any = _WithSlope
    found: Tensor = function.apply(value, u, slope)
    return found


Derivative = Callable[[Tensor, "Tensor | float", float, float, int], Tensor]
SURROGATES: dict[str, Derivative] = {}


def _surrogate(derivative: Derivative) -> Derivative:
    SURROGATES[derivative.__name__] = derivative
    return derivative


@_surrogate
def sigmoid(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """alpha s (1 - s) with s the logistic function of alpha u."""
    s = torch.sigmoid(alpha * u)
    return alpha * s * (1 - s)


@_surrogate
def atan(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """(alpha / 2) / (1 + (pi alpha u / 2)^2)."""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * u) ** 2)


@_surrogate
def fast_sigmoid(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """1 / (1 + alpha |u|)^2."""
    return 1 / (1 + alpha * u.abs()) ** 2


@_surrogate
def superspike(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """alpha / (1 + |u|)^2."""
    return alpha / (1 + u.abs()) ** 2


@_surrogate
def softsign(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """1 / (2 alpha (1 / alpha + |u|)^2)."""
    return 1 / (2 * alpha * (1 / alpha + u.abs()) ** 2)


@_surrogate
def triangle(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """max(0, alpha - alpha^2 |u|)."""
    return (alpha - alpha**2 * u.abs()).clamp_min(0)


@_surrogate
def exponential(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """(alpha / 2) e^(-alpha |u|)."""
    return alpha / 2 * torch.exp(-alpha * u.abs())


@_surrogate
def erf(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """(alpha / sqrt(pi)) e^(-(alpha u)^2)."""
    return alpha / math.sqrt(math.pi) * torch.exp(-((alpha * u) ** 2))


@_surrogate
def rect(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """alpha where |u| < 1 / (2 alpha), else 0."""
    return alpha * (u.abs() < 1 / (2 * alpha)).to(u.dtype)


@_surrogate
def piecewise_linear(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """1 / (2 alpha) where |u| < alpha, else beta."""
    return torch.where(u.abs() < alpha, u.new_tensor(1 / (2 * alpha)), beta)


@_surrogate
def leaky_relu(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """alpha where u >= 0, else beta."""
    return torch.where(u >= 0, u.new_tensor(alpha), beta)


@_surrogate
def straight_through(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """1 everywhere."""
    return torch.ones_like(u)


@_surrogate
def rect_count(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """1 where the potential lies in [0, limit * threshold], limit being the largest count; else 0."""
    h = u + threshold
    return ((h >= 0) & (h <= limit * threshold)).to(u.dtype)


@_surrogate
def periodic_exponential(u: Tensor, threshold: Tensor | float, alpha: float, beta: float, limit: int) -> Tensor:
    """(alpha / 2) e^(-alpha d), d the distance to the nearest positive multiple of the threshold."""
    h = u + threshold
    nearest = torch.round(h / threshold).clamp_min(1) * threshold
    return alpha / 2 * torch.exp(-alpha * (h - nearest).abs())
