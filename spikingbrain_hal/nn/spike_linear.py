"""Linear layers of integers: spike counts against integer weights, as the W8ASpike checkpoints mean them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.linear.spike_linear import GROUP_SIZES, reference, spike_linear
from ..ops.spike_coding.spike_encode import spike_encode

LARGEST_CODE = 512


def encode_weight(weight: Tensor, scales: Tensor) -> Tensor:
    """The integers n for which a weight is ``scale * n``: ``round(weight / scale)``, ties to even.

    Nothing is clamped, as in the released models, whose integers reach -182 and 194.

    Args:
        weight: [out, in], any float dtype; divided in float32.
        scales: One for each row and group of inputs, [out, in / group_size], float32, positive.

    Returns:
        The integers, [out, in], int16.

    Raises:
        ValueError: Shapes disagree, or an integer exceeds 512, beyond which int32 sums could overflow.
    """
    rows, groups = scales.shape
    if weight.dim() != 2 or weight.shape[0] != rows or weight.shape[1] % groups:
        raise ValueError(
            f"encode_weight: weight is {list(weight.shape)} with scales {list(scales.shape)}, "
            "expected [out, in] with [out, in / group_size]"
        )
    codes = (weight.float().unflatten(1, (groups, -1)) / scales.float()[..., None]).round().flatten(1)
    largest = codes.abs().max().item() if codes.numel() else 0.0
    if not largest <= LARGEST_CODE:
        raise ValueError(f"encode_weight: weight / scales reaches {largest}, expected at most {LARGEST_CODE}")
    integers: Tensor = codes.to(torch.int16)
    return integers


class Spikes(NamedTuple):
    """Activations as spikes: what several :class:`SpikeLinear` layers of one input share.

    Attributes:
        counts: Whole spikes, [..., K], int16.
        v_threshold: What one spike of a row is worth, [..., 1], float32, or float64 for activations of float64.
        dtype: Of the activations, and of what layers make of them.
    """

    counts: Tensor
    v_threshold: Tensor
    dtype: torch.dtype


def encode_spikes(x: Tensor, k: float = 3.0) -> Spikes:
    """Codes activations x, [..., K], with k spikes a channel, the mean rounded to x's dtype as in the released models.

    Source: SpikingBrain technical report, eqs. 19-21.
    """
    return Spikes(*spike_encode(x, k, mean_dtype="input"), x.dtype)


class SpikeLinear(nn.Module):
    """A linear layer of integer weights that reads spike counts: what ``W8ASpike`` names.

    ``y = v_threshold * sum_g scale_g * sum_{k in g} s_k n_k + bias`` with the counts s and threshold of
    :func:`encode_spikes`. For inference: its weights are integers, and have no gradient.

    Args:
        in_features: Size of the last axis of the input, a multiple of group_size.
        out_features: Size of the last axis of the output.
        bias: Add a bias.
        k: Mean spike count of a row.
        group_size: Inputs that share a scale: 32, 64 or 128.

    Raises:
        ValueError: group_size is none of them, or does not divide in_features.

    Source: SpikingBrain technical report, eqs. 19-23.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, k: float = 3.0, group_size: int = 128
    ) -> None:
        super().__init__()
        if group_size not in GROUP_SIZES:
            raise ValueError(f"SpikeLinear: group_size is {group_size}, expected one of {GROUP_SIZES}")
        if in_features % group_size:
            raise ValueError(f"SpikeLinear: in_features is {in_features}, expected a multiple of {group_size}")
        self.in_features, self.out_features, self.k, self.group_size = in_features, out_features, k, group_size
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int16))
        self.register_buffer("scales", torch.ones(out_features, in_features // group_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor | Spikes) -> Tensor:
        """Maps x, [..., in_features], to [..., out_features] in x's dtype.

        Args:
            x: Activations, or their spikes, where several layers read the same.

        Raises:
            RuntimeError: The layer is in training mode.
        """
        if self.training:
            raise RuntimeError("SpikeLinear has integer weights and no gradient; call eval() on the model")
        counts, v_threshold, dtype = encode_spikes(x, self.k) if isinstance(x, Tensor) else x
        layer = (counts, v_threshold, self.codes, self.scales)
        if dtype == torch.float64:  # which no kernel takes
            return reference(*layer, self.bias, self.group_size)
        return spike_linear(*layer, self.group_size, self.bias, out_dtype=dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "codes")
        if loaded is not None:  # they may have been int8 until now, and a copy would wrap
            self.codes = self.codes.to(loaded.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpikeLinear:
        scales = self.scales
        nn.Module._apply(self, fn, recurse)
        # a rounded scale would no longer be the checkpoint's: only the device may change
        self.scales = scales.to(self.codes.device) if self.scales.dtype != scales.dtype else self.scales
        return self

    def extra_repr(self) -> str:
        """The parameters in the printed model."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"k={self.k}, group_size={self.group_size}, codes={self.codes.dtype}"
        )


def spike_round(x: Tensor, k: float = 3.0) -> Tensor:
    """Rounds the rows of x, [..., K], to whole spikes as the released models do; without gradient.

    Differs from :func:`~spikingbrain_hal.ops.spike_quantize` in 16 bits, where the released models round each row's
    mean too.
    """
    counts, v_threshold, dtype = encode_spikes(x, k)
    return (counts * v_threshold).to(dtype)


def int8_round(x: Tensor) -> Tensor:
    """Rounds the rows of x, [..., K], to whole multiples of ``max |x| / 127``, clamped to [1e-5, 1e4]."""
    scale = (x.abs().amax(-1, keepdim=True).to(torch.promote_types(x.dtype, torch.float32)) / 127).clamp(1e-5, 1e4)
    return ((x / scale).round().clamp(-128, 127) * scale).to(x.dtype)
