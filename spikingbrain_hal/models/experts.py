"""The feed-forward half of a layer: one MLP, or routed experts with grouped products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import as_read, linear
from .configuration import GLAswaConfig


class GLU(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``, without biases.

    In a W8ASpike model gate and up read spikes, and down does with ``spike_down_proj``.

    Args:
        config: Sizes of the model.
        experts: How many MLPs of intermediate_size it is the sum of.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    def __init__(self, config: GLAswaConfig, experts: int = 1) -> None:
        super().__init__()
        self.config = config
        inner = experts * config.intermediate_size
        self.gate_proj = linear(config, config.hidden_size, inner, False)
        self.up_proj = linear(config, config.hidden_size, inner, False)
        spiking = config.w8aspike and config.spike_down_proj
        self.down_proj = (
            linear(config, inner, config.hidden_size, False)
            if spiking
            else nn.Linear(inner, config.hidden_size, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps x, [..., hidden_size], to the same shape."""
        read = as_read(self.config, x)
        y: Tensor = self.down_proj(F.silu(self.gate_proj(read)) * self.up_proj(read))
        return y


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiplies each group of rows by its own matrix, under autocast in its dtype.

    Args:
        x: Rows, those of the first group first, [M, K].
        weight: Matrices of the E groups, [E, N, K], dtype of x, or any under autocast.
        counts: Rows of each group, [E], int64.

    Returns:
        ``x @ weight[e].T`` for each row's group e, [M, N].
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    if hasattr(F, "grouped_mm") and x.dtype == torch.bfloat16 and aligned and len(x):  # what torch accepts everywhere
        y: Tensor = F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).int())
        return y
    groups = x.split(counts.tolist())
    return torch.cat([rows @ matrix.T for rows, matrix in zip(groups, weight, strict=True)])


class RoutedExperts(nn.Module):
    """``shared(x) + sum_i p_i expert_i(x)`` over the experts i with the largest ``p = sigmoid(router(x))``.

    Tokens are sorted by expert, so each expert reads all of its own at once.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, eqs. 16-17.
    """

    def __init__(self, config: GLAswaConfig) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        experts, inner, outer = config.num_experts, config.intermediate_size, config.hidden_size
        self.router = nn.Linear(outer, experts, bias=False)
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, outer))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, outer))
        self.down_proj = nn.Parameter(torch.empty(experts, outer, inner))
        self.shared = GLU(config, config.num_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x, [..., hidden_size], to the same shape."""
        tokens = x.flatten(0, -2)
        scores = self.router(tokens).to(torch.promote_types(x.dtype, torch.float32)).sigmoid()
        p, experts = scores.topk(self.chosen, -1)
        expert = experts.flatten()
        order = expert.argsort(stable=True)
        counts = (expert[:, None] == torch.arange(len(self.gate_proj), device=x.device)).sum(0)
        token = order // self.chosen
        rows = tokens[token]
        inner = F.silu(grouped_linear(rows, self.gate_proj, counts)) * grouped_linear(rows, self.up_proj, counts)
        shared: Tensor = self.shared(x)
        y = grouped_linear(inner, self.down_proj, counts) * p.flatten()[order, None].to(shared.dtype)
        routed = torch.zeros_like(tokens, dtype=y.dtype).index_add(0, token, y)
        return shared + routed.view_as(x)
