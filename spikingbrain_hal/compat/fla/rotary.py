"""fla's rotary embedding module."""

from __future__ import annotations

from torch import Tensor

from ..rotary import RotaryTables, rotary_embedding

__all__ = ["RotaryEmbedding", "rotary_embedding"]


class RotaryEmbedding(RotaryTables):
    """Rotary embedding of queries and keys.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        seqlen_offset: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        chunk_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turns q and k, [B, T, H, D].

        Args:
            q: Queries.
            k: Keys.
            seqlen_offset: Position of the first token, for all or for each sequence, [N].
            cu_seqlens: Offsets of sequences packed along T, [N + 1]; B must be 1.
            max_seqlen: A bound on the positions, which saves finding it.
            chunk_indices: Accepted and ignored.
        """
        if cu_seqlens is not None and q.shape[0] != 1:
            raise ValueError(f"RotaryEmbedding: B is {q.shape[0]}, expected 1 with cu_seqlens")
        last = int(seqlen_offset.max()) if isinstance(seqlen_offset, Tensor) else seqlen_offset
        cos, sin = self.tables(q, max(max_seqlen or 0, q.shape[1] + last))
        if cu_seqlens is None:
            q, k = (rotary_embedding(x, cos, sin, self.interleaved, False, seqlen_offset) for x in (q, k))
            return q, k
        q, k = (rotary_embedding(x[0], cos, sin, self.interleaved, False, seqlen_offset, cu_seqlens) for x in (q, k))
        return q[None], k[None]
