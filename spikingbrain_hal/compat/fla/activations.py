"""fla's activations and gated MLP in plain PyTorch: computed in float32, rounded once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return torch.sigmoid(_wide(x)).to(x.dtype)


def logsigmoid(x: Tensor, temperature: float = 1.0) -> Tensor:
    """``log(sigmoid(x)) / temperature``."""
    return (F.logsigmoid(_wide(x)) / temperature).to(x.dtype)


def swish(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``. Source: Ramachandran et al. 2017, arXiv:1710.05941."""
    return F.silu(_wide(x)).to(x.dtype)


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    """``swish(x) * y``. Source: Shazeer 2020, arXiv:2002.05202, eq. 5."""
    return (F.silu(_wide(x)) * _wide(y)).to(x.dtype)


def swiglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of :func:`swiglu`."""
    return F.linear(swiglu(x, y).to(weight.dtype), weight, bias)


def sqrelu(x: Tensor) -> Tensor:
    """``relu(x)^2``. Source: So et al. 2021, arXiv:2109.08668."""
    return F.relu(_wide(x)).square().to(x.dtype)


def fast_gelu_impl(x: Tensor) -> Tensor:
    """GELU by its tanh approximation. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2."""
    return F.gelu(_wide(x), approximate="tanh").to(x.dtype)


def bias_gelu_impl(y: Tensor, bias: Tensor) -> Tensor:
    """:func:`fast_gelu_impl` of y + bias."""
    return fast_gelu_impl(y + bias)


ACT2FN = {
    "relu": F.relu,
    "sigmoid": sigmoid,
    "logsigmoid": logsigmoid,
    "silu": swish,
    "swish": swish,
    "sqrelu": sqrelu,
    "gelu": fast_gelu_impl,
    "bias_gelu": bias_gelu_impl,
}


class SwiGLULinear(nn.Module):
    """:func:`swiglu_linear` as a module without parameters."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``swiglu(x, y) weight^T + bias``."""
        return swiglu_linear(x, y, weight, bias)


class GatedMLP(nn.Module):
    """``down_proj(swish(gate_proj(x)) * up_proj(x))``, all three without bias.

    Args:
        hidden_size: Size of inputs and outputs.
        hidden_ratio: Without intermediate_size, that is ``2/3 * hidden_ratio * hidden_size``, up to a multiple of 256.
        intermediate_size: Size between the projections.
        hidden_act: ``"swish"``.
        fuse_swiglu: Have the parameterless child ``swiglu_linear``.
    """

    def __init__(
        self,
        hidden_size: int,
        hidden_ratio: int | None = None,
        intermediate_size: int | None = None,
        hidden_act: str = "swish",
        fuse_swiglu: bool = True,
    ) -> None:
        super().__init__()
        if hidden_act != "swish":
            raise ValueError(f"GatedMLP: hidden_act is {hidden_act!r}, expected 'swish'")
        self.hidden_size, self.hidden_ratio = hidden_size, hidden_ratio or 4
        self.intermediate_size = intermediate_size or -(-int(hidden_size * self.hidden_ratio * 2 / 3) // 256) * 256
        self.hidden_act, self.fuse_swiglu = hidden_act, fuse_swiglu
        self.gate_proj = nn.Linear(hidden_size, self.intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, hidden_size, bias=False)
        if fuse_swiglu:
            self.swiglu_linear = SwiGLULinear()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Maps x, [..., hidden_size], to the same shape; keyword arguments are accepted and ignored, as in fla."""
        y: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return y
