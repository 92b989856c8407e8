"""Where the tokens of a ragged batch lie once they are packed one sequence after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a batch of T columns is laid out for the operators.

    Masked tokens are left out, so nothing that follows can depend on them: [B, T, ...] becomes [1, N, ...] with
    offsets. A single column without gradient, the step of a decoder, stays [B, 1, ...].

    A row is one sequence, or several one after another, as padding-free training packs them; S counts the sequences.

    Args:
        rows: The sequence of each of the N tokens, [N], int64.
        places: How many tokens of this call stand before it in its sequence, [N], int64.
        lengths: How many tokens each sequence has in this call, [S], int64.
        cu_seqlens: Offsets of the packed sequences, [S + 1], int32.
        shape: B and T.
        mask: Which tokens are real, bool [B, T]; None if all are.
        step: The layout is [B, 1, ...], for an update in place.
    """

    rows: Tensor
    places: Tensor
    lengths: Tensor
    cu_seqlens: Tensor
    shape: tuple[int, int]
    mask: Tensor | None
    step: bool

    @classmethod
    def of(
        cls,
        batch: int,
        time: int,
        device: torch.device,
        mask: Tensor | None = None,
        in_place: bool = True,
        begins: Tensor | None = None,
    ) -> Layout:
        """Lays out B rows of T columns.

        Args:
            batch: B.
            time: T.
            device: Where the tokens are.
            mask: Which tokens are real, [B, T], any dtype, zero for those to leave out; all are if absent.
            in_place: Allow the layout of a step.
            begins: Where a sequence begins in a row of several, bool [B, T], the first real token of each row
                included; each row is one sequence if absent.
        """
        mask = None if mask is None or bool(mask.all()) else mask.bool()
        if begins is not None:
            first = begins.flatten() if mask is None else begins[mask]
            starts = first.nonzero()[:, 0]
            rows = first.cumsum(0) - 1
            places = torch.arange(len(rows), device=device) - starts[rows]
            lengths = F.pad(starts, (0, 1), value=len(rows)).diff()
        elif mask is None:
            lengths = torch.full((batch,), time, device=device)
            rows = torch.arange(batch, device=device).repeat_interleave(time)
            places = torch.arange(time, device=device).repeat(batch)
        else:
            lengths = mask.sum(1)
            rows = mask.nonzero()[:, 0]
            places = (mask.cumsum(1) - 1)[mask]
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
        step = in_place and mask is None and time == 1 and not torch.is_grad_enabled()
        return cls(rows, places, lengths, cu_seqlens, (batch, time), mask, step)

    def pack(self, x: Tensor) -> Tensor:
        """Lays out x, [B, T, ...], as [1, N, ...], or [B, 1, ...] for a step."""
        if self.step:
            return x
        return (x.flatten(0, 1) if self.mask is None else x[self.mask])[None]

    def unpack(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`pack`: [B, T, ...].

        A masked place repeats the last real token before it in its row, as it leaves the sequence where it was; there
        it is zero if there is none.
        """
        if self.step:
            return y
        if self.mask is None:
            return y.view(*self.shape, *y.shape[2:])
        seen = self.mask.cumsum(1)
        before = F.pad(self.mask.sum(1).cumsum(0)[:-1], (1, 0))
        source = before[:, None] + seen - 1
        rows = F.pad(y[0], (0,) * (2 * y.dim() - 3) + (1,))  # a call without any token has no row to point at
        unpacked: Tensor = rows[torch.where(seen > 0, source, len(rows) - 1)]
        return unpacked
