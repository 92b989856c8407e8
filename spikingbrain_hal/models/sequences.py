"""Where sequences begin that padding-free training packs into the rows of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sequence_begins(
    shape: tuple[int, int],
    mask: Tensor | None = None,
    read: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor | None:
    """Finds where sequences begin from the arguments that say it, and refuses arguments that do not agree.

    Args:
        shape: B and T.
        mask: Which tokens are real, bool [B, T]; all are if absent. Masked ones belong to no sequence.
        read: How many tokens of each row earlier calls read, [B], int64; none if absent.
        position_ids: Place of each token in its sequence, [B or 1, T], any integer dtype.
        cu_seq_lens_q: Offsets of the sequences in the columns of all rows, from 0 to B * T, any integer dtype.
        cu_seq_lens_k: The same.
        max_length_q: An upper bound of the sequences' lengths in this call.
        max_length_k: The same.
        seq_idx: Which sequence each token belongs to, [B or 1, T], any integer dtype.

    Returns:
        Which real tokens begin a sequence, bool [B, T]; None if each row is one.

    Raises:
        ValueError: A shape, a dtype or a value is not as above, or two arguments contradict each other.
    """
    arguments = dict(
        position_ids=position_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k, seq_idx=seq_idx
    )
    given = {name: value for name, value in arguments.items() if value is not None}
    lengths = {"max_length_q": max_length_q, "max_length_k": max_length_k}
    if not given and all(length is None for length in lengths.values()):
        return None
    device = next((value.device for value in given.values()), torch.device("cpu"))
    tokens = _Tokens(shape, device if mask is None else mask.device, mask)
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"GLAswaModel: {name} is {value.dtype}, expected integers")
        value = value.to(tokens.rows.device)
        if name == "position_ids":
            found[name] = tokens.begins_by_positions(value, read)
        else:
            found[name] = tokens.begins_by_offsets(name, value) if "lens" in name else tokens.begins_by_indices(value)
        first = next(iter(found))
        tokens.refuse(found[name] != found[first], f"{first} and {name} disagree whether a sequence begins")
    begins = next(iter(found.values()), tokens.heads)
    longest = int(F.pad(begins.nonzero()[:, 0], (0, 1), value=len(begins)).diff().max()) if len(begins) else 0
    for name, length in lengths.items():
        if length is not None and length < longest:
            raise ValueError(f"GLAswaModel: {name} is {length}, expected at least {longest}, the longest sequence")
    if torch.equal(begins, tokens.heads):
        return None
    columns = begins.new_zeros(shape)
    columns[tokens.rows, tokens.columns] = begins
    return columns


class _Tokens:
    """The N real tokens of a call, row after row: row and column of each, and which is the first of its row."""

    def __init__(self, shape: tuple[int, int], device: torch.device, mask: Tensor | None) -> None:
        self.shape = shape
        real = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask
        self.rows, self.columns = real.nonzero(as_tuple=True)
        self.heads = self.changes(self.rows)

    def changes(self, x: Tensor) -> Tensor:
        """Which of x, [N], differ from the one before them; the first does."""
        return torch.cat((torch.ones_like(x[:1], dtype=torch.bool), x[1:] != x[:-1]))

    def refuse(self, wrong: Tensor, why: str) -> None:
        """Raises if any of the tokens, bool [N], is wrong, and says where the first one is."""
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(f"GLAswaModel: {why} at row {int(self.rows[i])}, column {int(self.columns[i])}")

    def of_grid(self, name: str, value: Tensor) -> Tensor:
        """The values of the tokens, [N], from [B or 1, T]."""
        rows, time = self.shape
        if value.dim() != 2 or value.shape[1] != time or value.shape[0] not in (1, rows):
            raise ValueError(f"GLAswaModel: {name} is {list(value.shape)}, expected [{rows}, {time}]")
        return value.expand(rows, time)[self.rows, self.columns]

    def begins_by_positions(self, value: Tensor, read: Tensor | None) -> Tensor:
        """A sequence begins at position 0, and where a row goes on from an earlier call."""
        position = self.of_grid("position_ids", value)
        begins = self.heads | (position == 0)
        start = begins.nonzero()[:, 0][begins.cumsum(0) - 1]
        expected = torch.arange(len(position), device=position.device) - start
        if read is not None:
            expected = expected + torch.where(self.heads[start], read.to(position.device)[self.rows], 0)
        self.refuse(
            position != expected,
            "position_ids do not count the real tokens of a sequence, from 0 or from the tokens that the cache holds,",
        )
        return begins

    def begins_by_offsets(self, name: str, value: Tensor) -> Tensor:
        """A sequence begins at each offset."""
        rows, time = self.shape
        ordered = value.dim() == 1 and len(value) > 1 and bool((value.diff() >= 0).all())
        if not ordered or value[0] != 0 or value[-1] != rows * time:
            shown = value.tolist() if value.numel() <= 8 else f"of shape {list(value.shape)}"
            raise ValueError(f"GLAswaModel: {name} is {shown}, expected offsets that rise from 0 to {rows * time}")
        sequence = torch.bucketize(self.rows * time + self.columns, value.long(), right=True)
        begins = self.changes(sequence)
        self.refuse(self.heads & ~begins, f"{name} has a sequence that goes on")
        return begins

    def begins_by_indices(self, value: Tensor) -> Tensor:
        """A sequence begins where the index changes, and in each row."""
        return self.heads | self.changes(self.of_grid("seq_idx", value))
