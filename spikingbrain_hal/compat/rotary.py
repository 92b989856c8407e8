"""Rotary embedding from tables of cosines and sines, as fla and flash-attn apply it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .signatures import refuse


def positions(x: Tensor, offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The position of each token: [T] or [B, T] for x [B, T, H, D], [T] for packed sequences along the T of x."""
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff()
        steps = torch.arange(x.shape[-3], device=x.device)
        row = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths)
        place = steps[: len(row)] - cu_seqlens[:-1].to(steps.dtype)[row]
        place = place + (offsets[row].to(place.dtype) if isinstance(offsets, Tensor) else offsets)
        return torch.cat((place, steps.new_zeros(len(steps) - len(row))))
    steps = torch.arange(x.shape[1], device=x.device)
    return steps + offsets if isinstance(offsets, int) else steps + offsets[:, None].to(steps.dtype)


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    conjugate: bool = False,
) -> Tensor:
    """Turns pairs of channels by the angle of their position.

    Args:
        x: [B, T, H, D], or [T, H, D] of packed sequences; the first R channels turn.
        cos: Cosine for each position and pair, [S, R / 2].
        sin: The sines.
        interleaved: Pairs are neighbours (GPT-J) rather than halves (GPT-NeoX).
        seqlen_offsets: Position of the first token, for all or for each sequence, [N].
        cu_seqlens: Offsets of packed sequences, [N + 1].
        conjugate: Turn backwards.

    Returns:
        The turned x, same shape and dtype; computed in float32.

    Raises:
        ValueError: A position is past the end of the tables, or they turn more channels than x has.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    turned = 2 * cos.shape[-1]
    if turned > x.shape[-1]:
        raise ValueError(f"apply_rotary: cos has {cos.shape[-1]} columns, expected at most D/2={x.shape[-1] // 2}")
    place = positions(x, seqlen_offsets, cu_seqlens)
    last = -1
    if cu_seqlens is None and isinstance(seqlen_offsets, int):
        last = x.shape[1] - 1 + seqlen_offsets
    elif place.numel() and place.device.type == "cpu":  # elsewhere looking would wait for the device
        last = int(place.max())
    if last >= cos.shape[0]:
        raise ValueError(f"apply_rotary: position {last} given, cos has {cos.shape[0]} rows")
    wide = torch.promote_types(x.dtype, torch.float32)
    c, s = (table[place].unsqueeze(-2).to(wide) for table in (cos, sin))
    s = -s if conjugate else s
    head, rest = x[..., :turned].to(wide), x[..., turned:]
    a, b = (head[..., ::2], head[..., 1::2]) if interleaved else head.chunk(2, -1)
    halves = (a * c - b * s, b * c + a * s)
    y = torch.stack(halves, -1).flatten(-2) if interleaved else torch.cat(halves, -1)
    return torch.cat((y.to(x.dtype), rest), -1)


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """:func:`apply_rotary` in the argument order of fla and flash-attn; inplace writes the result over x."""
    y = apply_rotary(x, cos, sin, interleaved, seqlen_offsets, cu_seqlens)
    return x.copy_(y) if inplace else y


class RotaryTables(nn.Module):
    """Cosines and sines that grow with the longest sequence seen.

    Args:
        dim: How many channels turn.
        base: Base of the wavelengths.
        scale_base: Not supported.
        interleaved: Pairs are neighbours rather than halves.
        pos_idx_in_fp32: Positions are float32; otherwise in the dtype of ``inv_freq``.
        device: Where the tables lie.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        scale_base: float | None = None,
        interleaved: bool = False,
        pos_idx_in_fp32: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        refuse(type(self).__name__, scale_base=scale_base)
        self.dim, self.base, self.scale_base = dim, float(base), None
        self.interleaved, self.pos_idx_in_fp32 = interleaved, pos_idx_in_fp32
        self.register_buffer("inv_freq", self._compute_inv_freq(device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Computes ``inv_freq`` anew where it lies and forgets the tables; for modules built without memory."""
        frequencies = self.get_buffer("inv_freq")
        frequencies.copy_(self._compute_inv_freq(frequencies.device))
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None

    def _compute_inv_freq(self, device: torch.device | None = None) -> Tensor:
        return self.base ** -(torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Makes tables for seqlen positions; the name is what subclasses in client code call."""
        old = self._cos_cached
        if old is not None and seqlen <= self._seq_len_cached and (old.device, old.dtype) == (device, dtype):
            return
        frequencies = self.get_buffer("inv_freq")
        if self.pos_idx_in_fp32 and frequencies.dtype != torch.float32:
            frequencies = self._compute_inv_freq(device)
        place = torch.arange(seqlen, device=device, dtype=frequencies.dtype)
        angles = torch.outer(place, frequencies.to(device))
        self._seq_len_cached = seqlen
        self._cos_cached, self._sin_cached = angles.cos().to(dtype), angles.sin().to(dtype)

    def tables(self, x: Tensor, seqlen: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines for seqlen positions, in the dtype and on the device of x."""
        self._update_cos_sin_cache(seqlen, x.device, x.dtype)
        assert self._cos_cached is not None
        assert self._sin_cached is not None
        return self._cos_cached, self._sin_cached
