"""Spike-coded activations: the coder as a layer, what reads its spikes, and how sparse they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.spike_coding.spike_quantize import spike_quantize
from .config import SpikingBrainConfig


class SpikeCoder(nn.Module):
    """Rounds each row of activations to whole spikes under a threshold that adapts to the row.

    Gives ``counts * v_threshold`` of :func:`~spikingbrain_hal.ops.spike_encode`; the gradient
    passes straight through.

    Args:
        k: Mean spike count of a row.

    Source: SpikingBrain technical report, eqs. 19-21.
    """

    def __init__(self, k: float = 3.0) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Codes x, [..., K], along its last axis; the result has x's shape and dtype."""
        return spike_quantize(x, self.k)

    def extra_repr(self) -> str:
        """The parameters in the printed model."""
        return f"k={self.k}"


class SpikingLinear(nn.Linear):
    """A linear layer that reads spikes: ``linear(SpikeCoder(k)(x))``.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Add a learnable bias.
        k: Mean spike count of a row.

    Source: SpikingBrain technical report, eq. 22.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, k: float = 3.0) -> None:
        super().__init__(in_features, out_features, bias)
        self.spikes = SpikeCoder(k)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x, [..., in_features], to [..., out_features]."""
        return F.linear(self.spikes(x), self.weight, self.bias)


class SpikingMLP(nn.Module):
    """SwiGLU whose gate and up projections read spikes s: ``down(silu(gate(s)) * up(s))``.

    The input of the down projection is not coded, as in the released W8ASpike models.

    Args:
        config: Sizes of the model.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6; SpikingBrain technical report, section 3.
    """

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        self.spikes = SpikeCoder(config.spike_k)
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x, [..., hidden_size], to the same shape."""
        s = self.spikes(x)
        y: Tensor = self.down_proj(F.silu(self.gate_proj(s)) * self.up_proj(s))
        return y


@dataclass(frozen=True)
class SpikeStatistics:
    """How sparse spike counts are.

    Args:
        zero_counts: Share of counts that are zero: silent channels.
        zero_slots: Share of empty time slots when the three lowest bits of ``|count|`` take one
            slot each: the sparsity of the report (69.15 % in the 7B model).
        spikes_per_channel: Mean number of set bits of ``|count|``: what a bitwise train sends.
        within_three_bits: Share of counts with ``|count| <= 7``, which three slots send whole.

    Source: SpikingBrain technical report, section 5.5.
    """

    zero_counts: float
    zero_slots: float
    spikes_per_channel: float
    within_three_bits: float

    @classmethod
    def of(cls, counts: Tensor) -> SpikeStatistics:
        """Measures int16 counts of any shape with at least one element."""
        size = counts.int().abs()
        bits = [((size >> bit) & 1).double().mean().item() for bit in range(15)]
        return cls(
            zero_counts=(size == 0).double().mean().item(),
            zero_slots=1 - sum(bits[:3]) / 3,
            spikes_per_channel=sum(bits),
            within_three_bits=(size <= 7).double().mean().item(),
        )

    @classmethod
    def mean(cls, parts: Sequence[tuple[SpikeStatistics, int]]) -> SpikeStatistics:
        """The statistics of several tensors together, given those of each and its number of elements."""
        total = sum(size for _, size in parts)
        return cls(*(sum(getattr(s, f.name) * size for s, size in parts) / total for f in fields(cls)))
