"""flash-attn's rotary embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rotary import RotaryTables, apply_rotary, rotary_embedding


def apply_rotary_qkv(
    qkv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: int | Tensor = 0
) -> Tensor:
    """Turns the queries and keys of qkv, [B, T, 3, H, D]; unlike flash-attn, not in place."""
    q, k, v = qkv.unbind(2)
    q, k = (apply_rotary(x, cos, sin, interleaved, seqlen_offsets) for x in (q, k))
    return torch.stack((q, k, v), 2)


def apply_rotary_kernel(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """``flash_attn.ops.triton.rotary.apply_rotary``: turns x, [B, T, H, D] or packed [T, H, D]."""
    y = apply_rotary(x, cos, sin, interleaved, seqlen_offsets, cu_seqlens, conjugate)
    return x.copy_(y) if inplace else y


class RotaryEmbedding(RotaryTables):
    """Rotary embedding of packed queries, keys and values.

    Args:
        dim: How many channels turn.
        base: Base of the wavelengths.
        interleaved: Pairs are neighbours rather than halves.
        scale_base: Not supported.
        pos_idx_in_fp32: Positions are float32.
        device: Where the tables lie.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        pos_idx_in_fp32: bool = True,
        device: Any = None,
    ) -> None:
        super().__init__(dim, base, scale_base, interleaved, pos_idx_in_fp32, device)

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Turns queries and keys.

        Args:
            qkv: [B, T, 3, H, D]; queries, [B, T, H, D], with kv.
            kv: Keys and values, [B, T, 2, H, D].
            seqlen_offset: Position of the first token, for all or for each sequence, [B].
            max_seqlen: A bound on the positions.

        Returns:
            The turned qkv, or queries and kv.
        """
        last = int(seqlen_offset.max()) if isinstance(seqlen_offset, Tensor) else seqlen_offset
        cos, sin = self.tables(qkv, max(max_seqlen or 0, qkv.shape[1] + last))
        if kv is None:
            return apply_rotary_qkv(qkv, cos, sin, self.interleaved, seqlen_offset)
        k, v = kv.unbind(2)
        q, k = (apply_rotary(x, cos, sin, self.interleaved, seqlen_offset) for x in (qkv, k))
        return q, torch.stack((k, v), 2)


NAMES: dict[str, object] = {
    "RotaryEmbedding": RotaryEmbedding,
    "apply_rotary_emb": rotary_embedding,
    "apply_rotary_emb_func": rotary_embedding,
    "apply_rotary_emb_qkv_": apply_rotary_qkv,
}
