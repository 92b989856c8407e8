"""fla's norm layers in plain PyTorch, with its parameter names: computed in float32, rounded once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Normed = Tensor | tuple[Tensor, Tensor]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    """``x / sqrt(sum(x^2) + eps)`` over the last axis."""
    y = _wide(x) * torch.rsqrt(_wide(x).square().sum(-1, keepdim=True) + eps)
    return y.to(output_dtype or x.dtype)


class L2Norm(nn.Module):
    """:func:`l2norm` as a module.

    Args:
        eps: Added to the sum of squares.
        output_dtype: Of the result; x's if None.
    """

    def __init__(self, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps, self.output_dtype = eps, output_dtype

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes x, [..., D]."""
        return l2norm(x, self.eps, self.output_dtype)


class _Norm(nn.Module):
    """Scale and shift over the last axis, and the residual sum before it that every norm of fla offers.

    Args:
        hidden_size: Size of the last axis.
        elementwise_affine: Have a weight.
        bias: Have a bias too.
        eps: Added to the mean square or variance.
    """

    groups = 1
    centered = False

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.elementwise_affine, self.eps = hidden_size, elementwise_affine, eps
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if elementwise_affine:
            self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
            if bias:
                self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to one and the bias to zero."""
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def extra_repr(self) -> str:
        """What the module shows in brackets."""
        return f"{self.hidden_size}, eps={self.eps}"

    def _normalize(self, x: Tensor, residual: Tensor | None, residual_in_fp32: bool) -> tuple[Tensor, Tensor]:
        """The normed sum, float32, and the sum in the residual's dtype."""
        total, carried = _wide(x), x
        if residual is not None:
            total = total + _wide(residual)
            carried = total.to(residual.dtype)
        elif residual_in_fp32:
            carried = total
        grouped = total.unflatten(-1, (self.groups, -1))
        if self.centered:
            grouped = grouped - grouped.mean(-1, keepdim=True)
        y = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)).flatten(-2)
        if self.weight is not None:
            y = y * _wide(self.weight)
        if self.bias is not None:
            y = y + _wide(self.bias)
        return y, carried

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Normed:
        """Normalizes x, or x + residual.

        Args:
            x: Inputs, [..., hidden_size].
            residual: Added before the norm; same shape, its dtype is the sum's.
            prenorm: Also return the sum.
            residual_in_fp32: Without a residual, return the sum as float32.

        Returns:
            The normed values in x's dtype, and with prenorm the sum.
        """
        y, carried = self._normalize(x, residual, residual_in_fp32)
        return (y.to(x.dtype), carried) if prenorm else y.to(x.dtype)


class RMSNorm(_Norm):
    """``x / sqrt(mean(x^2) + eps) * weight``. Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""


class LayerNorm(_Norm):
    """``(x - mean) / sqrt(var + eps) * weight``. Source: Ba et al. 2016, arXiv:1607.06450, eq. 4."""

    centered = True


class GroupNorm(_Norm):
    """A layer norm, or RMS norm, of each of num_groups groups of channels.

    Args:
        num_groups: Divides hidden_size.
        hidden_size: Size of the last axis.
        elementwise_affine: Have a weight.
        bias: Have a bias too.
        eps: Added to the variance.
        is_rms_norm: Do not subtract the mean.
    """

    def __init__(
        self,
        num_groups: int,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        is_rms_norm: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if hidden_size % num_groups:
            raise ValueError(f"GroupNorm: hidden_size is {hidden_size}, expected a multiple of num_groups={num_groups}")
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)
        self.num_groups = self.groups = num_groups
        self.is_rms_norm = is_rms_norm
        self.centered = not is_rms_norm


class _GatedNorm(_Norm):
    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        activation: str = "swish",
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ("swish", "silu", "sigmoid"):
            raise ValueError(
                f"{type(self).__name__}: activation is {activation!r}, expected 'swish', 'silu' or 'sigmoid'"
            )
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)
        self.activation = activation

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """As the plain norm, times the activation of the gate g, [..., hidden_size]."""
        y, carried = self._normalize(x, residual, residual_in_fp32)
        gate = torch.sigmoid(_wide(g)) if self.activation == "sigmoid" else F.silu(_wide(g))
        y = (y * gate).to(x.dtype)
        return (y, carried) if prenorm else y


class FusedLayerNormGated(_GatedNorm):
    """A layer norm times a gate."""

    centered = True


class FusedRMSNormGated(_GatedNorm):
    """An RMS norm times a gate: ``rms_norm(x) * weight * activation(g)``.

    Args:
        hidden_size: Size of the last axis.
        elementwise_affine: Have a weight.
        eps: Added to the mean square.
        activation: ``"swish"``, ``"silu"`` or ``"sigmoid"``.
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, False, activation, eps, device, dtype)


class FusedRMSNormSwishGate(FusedRMSNormGated):
    """:class:`FusedRMSNormGated` under the name of fla 0.1, where the gate is called ``o``."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        o: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """As :meth:`FusedRMSNormGated.forward`, gated by ``silu(o)``."""
        return super().forward(x, o, residual, prenorm, residual_in_fp32)
