"""One block of a ``gla_swa`` model: attention, then MLP or experts, each after its norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..nn import Layout
from .attention import HybridAttention
from .cache import AttentionState
from .configuration import GLAswaConfig
from .experts import GLU, RoutedExperts


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm that rounds once, after its weight, also over a sum that it takes itself."""

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises ``x + residual`` before the sum is rounded; returns that and the rounded sum.

        Both are as wide as the wider of the two: under autocast x is narrow, the residual stream is not.
        """
        dtype = torch.promote_types(x.dtype, residual.dtype)
        total = x.to(torch.promote_types(dtype, torch.float32)) + residual
        y = F.rms_norm(total, self.normalized_shape, self.weight.to(total.dtype), self.eps)
        return y.to(dtype), total.to(dtype)


class HybridBlock(GradientCheckpointingLayer):
    """One block: ``x + attn(attn_norm(x))``, then ``x + mlp(mlp_norm(x))``.

    Args:
        config: Sizes of the model.
        layer: Which block it is, from 0.
    """

    def __init__(self, config: GLAswaConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = HybridAttention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        dense = not config.num_experts or layer in config.dense_layers
        self.mlp = GLU(config) if dense else RoutedExperts(config)

    def forward(
        self, x: Tensor, layout: Layout, angles: tuple[Tensor, Tensor], state: AttentionState | None, sinks: int
    ) -> Tensor:
        """As :meth:`HybridAttention.forward`."""
        y = self.attn(self.attn_norm(x), layout, angles, state, sinks)
        y, x = self.mlp_norm.of_sum(y, x)
        x = x + self.mlp(y)
        return x
