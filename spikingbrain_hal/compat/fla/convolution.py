"""fla's short causal convolution in plain PyTorch: channels last, a cache of the last W inputs."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..signatures import refuse


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolves x, [N, T, D], after the inputs in before, [N, D, W]; and the last W inputs then."""
    width = weight.shape[-1]
    if before is None:
        before = x.new_zeros(x.shape[0], x.shape[2], width)
    inputs = torch.cat((before.to(x.dtype), x.transpose(1, 2)), -1)
    taps = weight.unsqueeze(1).to(x.dtype)
    y = F.conv1d(inputs, taps, None if bias is None else bias.to(x.dtype), groups=x.shape[2])
    # The first result is that of the last input before x; computing it lets T be 0.
    return y[..., 1:].transpose(1, 2), inputs[..., -width:].contiguous()


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    activation: str | None = None,
    backend: str | None = "triton",
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """Depthwise causal convolution over time.

    Args:
        x: Inputs, [B, T, D].
        weight: Taps, [D, W]; the last one meets the present input.
        bias: [D].
        residual: Added to the result, [B, T, D].
        initial_state: The W inputs before x, [N, D, W].
        output_final_state: Return the last W inputs.
        activation: None, ``"silu"`` or ``"swish"``.
        backend: Accepted and ignored, as are cu_seqlens_cpu and chunk_indices.
        cu_seqlens: Offsets of sequences packed along T, [N + 1]; B must be 1. Outputs past the last are 0.
        cp_context: Not supported.

    Returns:
        The results, [B, T, D], and the last W inputs, [N, D, W], or None.

    Raises:
        ValueError: The activation is unknown, or B is not 1 with cu_seqlens.
        UnsupportedOp: cp_context is given.
    """
    refuse("causal_conv1d", cp_context=cp_context)
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"causal_conv1d: activation is {activation!r}, expected None, 'silu' or 'swish'")
    if cu_seqlens is None:
        y, state = _convolve(x, weight, bias, initial_state)
    else:
        if x.shape[0] != 1:
            raise ValueError(f"causal_conv1d: B is {x.shape[0]}, expected 1 with cu_seqlens")
        pieces, states, end = [], [], 0
        for n, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
            before = None if initial_state is None else initial_state[n : n + 1]
            piece, last = _convolve(x[:, start:end], weight, bias, before)
            pieces.append(piece)
            states.append(last)
        y = torch.cat([*pieces, x.new_zeros(1, x.shape[1] - end, x.shape[2])], 1)
        state = torch.cat(states)
    if activation is not None:
        y = F.silu(y)
    if residual is not None:
        y = y + residual
    return y, state if output_final_state else None


class ShortConvolution(nn.Conv1d):
    """A causal convolution over W steps, one filter for each channel; ``weight`` is [D, 1, W].

    Args:
        hidden_size: Number D of channels.
        kernel_size: Number W of steps.
        bias: Have a bias.
        activation: None, ``"silu"`` or ``"swish"``.
        backend: Kept as an attribute; every value computes the same.
        use_fast_conv1d: Accepted and ignored.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: str | None = "silu",
        backend: str | None = "triton",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        use_fast_conv1d: bool = True,
    ) -> None:
        if activation not in (None, "silu", "swish"):
            raise ValueError(f"ShortConvolution: activation is {activation!r}, expected None, 'silu' or 'swish'")
        super().__init__(
            hidden_size,
            hidden_size,
            kernel_size,
            groups=hidden_size,
            bias=bias,
            padding=kernel_size - 1,
            device=device,
            dtype=dtype,
        )
        self.hidden_size, self.activation = hidden_size, activation
        self.backend = os.environ.get("FLA_CONV_BACKEND", backend)

    @property
    def state_size(self) -> int:
        """Numbers in the cache of one sequence."""
        return self.hidden_size * self.kernel_size[0]

    def _run(
        self, x: Tensor, residual: Tensor | None, cache: Tensor | None, final: bool, offsets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        taps = self.weight.squeeze(1)
        return causal_conv1d(x, taps, self.bias, residual, cache, final, self.activation, cu_seqlens=offsets)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        chunk_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolves x.

        Args:
            x: Inputs, [B, T, D].
            residual: Added to the result.
            mask: Padding, 0 or 1, [B, T]; multiplies x.
            cache: The last W inputs before x, [N, D, W]; a call of one step for each sequence updates it in place.
            output_final_state: Return the last W inputs.
            cu_seqlens: Offsets of packed sequences, [N + 1].
            chunk_indices: Accepted and ignored.

        Returns:
            The results, [B, T, D], and the last W inputs, [N, D, W], or None.

        Raises:
            ValueError: mask and cu_seqlens are both given.
        """
        if mask is not None and cu_seqlens is not None:
            raise ValueError("ShortConvolution: mask and cu_seqlens are both given, expected one of them")
        if mask is not None:
            x = x * mask.unsqueeze(-1).to(x.dtype)
        sequences = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        step = x.shape[0] * x.shape[1] == sequences
        y, last = self._run(x, residual, cache, output_final_state or (step and cache is not None), cu_seqlens)
        if step and cache is not None and last is not None:
            return y, _overwrite(cache, last)
        return y, last


class ShortConvolution01(ShortConvolution):
    """:class:`ShortConvolution` with the arguments of fla 0.1: ``(x, mask, cache, output_final_state, seq_idx)``.

    A given cache is always updated in place. Unlike fla 0.1, a call of several steps continues from it.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: str | None = "silu",
        use_fast_conv1d: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, kernel_size, bias, activation, "triton", device, dtype)
        self.use_fast_conv1d = use_fast_conv1d

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        seq_idx: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolves x, [B, T, D]; seq_idx, [B, T], numbers the sequence of each step.

        Returns:
            The results, [B, T, D], and the last W inputs, [B, D, W], or None.
        """
        if mask is not None:
            x = x * mask.unsqueeze(-1).to(x.dtype)
        if seq_idx is None:
            y, last = self._run(x, None, cache, output_final_state or cache is not None, None)
            return y, last if cache is None or last is None else _overwrite(cache, last)
        refuse("ShortConvolution", cache=cache, output_final_state=output_final_state)
        rows = []
        for row, numbers in zip(x, seq_idx, strict=True):
            lengths = torch.unique_consecutive(numbers, return_counts=True)[1]
            rows.append(self._run(row[None], None, None, False, F.pad(lengths.cumsum(0), (1, 0)))[0])
        return torch.cat(rows), None


def _overwrite(cache: Tensor, last: Tensor) -> Tensor:
    with torch.no_grad():
        return cache.copy_(last)
