"""Padded batches to packed sequences and back, as flash-attn and fla do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """The rows ``x[indices]``."""
    return x.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """A tensor of first_axis_dim rows that holds values at indices and 0 elsewhere."""
    places = values.new_zeros(first_axis_dim, *values.shape[1:])
    return places.index_copy(0, indices.long(), values)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Packed rows, [total, ...], back in their places of [batch, seqlen, ...], 0 elsewhere."""
    rows = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return rows.view(batch, seqlen, *rows.shape[1:])


def get_unpad_data(attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Where the tokens of a padded batch are.

    Args:
        attention_mask: 0 or 1, [B, T].

    Returns:
        Their indices in the flattened batch, the offsets of the sequences, [B + 1], int32, and the longest length.
    """
    lengths = attention_mask.sum(-1, dtype=torch.int32)
    indices = attention_mask.flatten().nonzero().flatten()
    return indices, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), int(lengths.max())


def unpad_flash(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """flash_attn.bert_padding.unpad_input since 2.7.

    Args:
        hidden_states: [B, T, ...].
        attention_mask: 0 or 1, [B, T].
        unused_mask: Tokens that are kept but not used, 0 or 1, [B, T].

    Returns:
        The kept tokens, [total, ...], their indices, the offsets, [B + 1], the longest length, and the number of used
        tokens of each sequence, [B].
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    indices, offsets, longest = get_unpad_data(kept)
    used = attention_mask.sum(-1, dtype=torch.int32)
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, offsets, longest, used


def unpad_flash_26(hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """flash_attn.bert_padding.unpad_input before 2.7: :func:`unpad_flash` without its last value."""
    return unpad_flash(hidden_states, attention_mask)[:4]


def unpad_fla(
    q: Any, states: Sequence[Tensor], attention_mask: Tensor, q_len: int, keepdim: bool = False
) -> tuple[Any, tuple[Tensor, ...], Tensor, tuple[Tensor, Tensor], tuple[int, int]]:
    """fla.layers.utils.unpad_input.

    Args:
        q: Queries, [B, q_len, ...], or a tuple of such tensors.
        states: Keys, values and the like, each [B, T, ...].
        attention_mask: 0 or 1, [B, T].
        q_len: T, or 1 when decoding.
        keepdim: Keep a batch axis of 1.

    Returns:
        q and the states without padding, the indices of q's tokens, and for q and the states the offsets, [B + 1], and
        the longest length.

    Raises:
        ValueError: q_len is neither T nor 1.
    """
    queries = q if isinstance(q, tuple | list) else (q,)
    indices, offsets, longest = get_unpad_data(attention_mask)
    batch, length = states[0].shape[:2]
    packed = tuple(index_first_axis(s.flatten(0, 1), indices) for s in states)
    indices_q, offsets_q, longest_q = indices, offsets, longest
    if q_len == length:
        queries = tuple(index_first_axis(x.flatten(0, 1), indices) for x in queries)
    elif q_len == 1:
        offsets_q = torch.arange(batch + 1, dtype=torch.int32, device=offsets.device)
        indices_q, longest_q = offsets_q[:-1], 1
        queries = tuple(x.squeeze(1) for x in queries)
    else:
        raise ValueError(f"unpad_input: q_len is {q_len}, expected 1 or T={length}")
    if keepdim:
        queries, packed = tuple(x[None] for x in queries), tuple(x[None] for x in packed)
    result = queries if isinstance(q, tuple | list) else queries[0]
    return result, packed, indices_q, (offsets_q, offsets), (longest_q, longest)


def prepare_lens(cu_seqlens: Tensor) -> Tensor:
    """The lengths of packed sequences, [N]."""
    return cu_seqlens.diff()


def prepare_lens_from_mask(mask: Tensor) -> Tensor:
    """The number of tokens of each row of a mask, [B], int32."""
    return mask.sum(-1, dtype=torch.int32)


def prepare_cu_seqlens_from_lens(lens: Tensor, dtype: torch.dtype | None = torch.int32) -> Tensor:
    """Offsets of packed sequences of these lengths, [N + 1]."""
    return F.pad(lens.cumsum(0, dtype=dtype), (1, 0))


def prepare_cu_seqlens_from_mask(mask: Tensor, dtype: torch.dtype | None = torch.int32) -> Tensor:
    """Offsets of the rows of a mask, packed, [B + 1]."""
    return prepare_cu_seqlens_from_lens(prepare_lens_from_mask(mask), dtype)


def prepare_position_ids(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """The position of each packed token in its sequence, [total]."""
    lengths = prepare_lens(cu_seqlens)
    starts = cu_seqlens[:-1].repeat_interleave(lengths)
    return torch.arange(len(starts), dtype=cu_seqlens.dtype, device=cu_seqlens.device) - starts + cu_seqlens[0]


def prepare_sequence_ids(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """The number of each packed token's sequence, [total]."""
    numbers = torch.arange(len(cu_seqlens) - 1, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return numbers.repeat_interleave(prepare_lens(cu_seqlens))


def sequence_ids_of_positions(position_ids: Tensor) -> Tensor:
    """:func:`prepare_sequence_ids` of fla 0.1, which takes positions and so passes over empty sequences."""
    return position_ids.eq(0).cumsum(0) - 1


def prepare_token_indices(cu_seqlens: Tensor, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """Sequence and position of each packed token, [total, 2]."""
    return torch.stack((prepare_sequence_ids(cu_seqlens), prepare_position_ids(cu_seqlens)), 1)


def prepare_chunk_offsets(cu_seqlens: Tensor, chunk_size: int) -> Tensor:
    """Offsets of the sequences counted in chunks, [N + 1]."""
    chunks = (prepare_lens(cu_seqlens) + chunk_size - 1) // chunk_size
    return F.pad(chunks.cumsum(0).to(cu_seqlens.dtype), (1, 0))


def prepare_chunk_indices(cu_seqlens: Tensor, chunk_size: int, cu_seqlens_cpu: Tensor | None = None) -> Tensor:
    """Sequence and number within it of each chunk, [chunks, 2]."""
    return prepare_token_indices(prepare_chunk_offsets(cu_seqlens, chunk_size))
