"""The integers and scales of a projection."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..nn import encode_weight
from .source import Linear, PackingError

LARGEST = 127


def code_blocks(linear: Linear) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A projection's integers and scales, a block of rows at a time.

    A W8ASpike weight is ``round(weight / scale)`` under its own scales, not clamped. Any other is rounded to 255 levels
    of its row and group: ``scale = max |weight| / 127``, 1 where all are zero.

    Args:
        linear: The projection.

    Yields:
        The number of the first row; integers, int16 [rows, in]; scales, float32 [rows, in / group_size].

    Raises:
        PackingError: A weight is not finite, or an integer beyond what int32 sums allow.
    """
    given = None if linear.scales is None else linear.scales.whole().flatten(1).float()
    for first, weight in _weight_blocks(linear):
        if given is None:
            largest = weight.unflatten(1, (-1, linear.group_size)).abs().amax(-1)
            scales = largest / LARGEST
            scales[scales == 0] = 1.0
        else:
            scales = given[first : first + len(weight)]
        try:
            codes = encode_weight(weight, scales)
        except ValueError as error:
            raise PackingError(f"{linear.weight.path}: {linear.weight.name}, from row {first}: {error}") from None
        yield first, codes.to(torch.int16), scales


def narrowest(codes: Tensor) -> Tensor:
    """Integers as int8 if all fit, else as int16."""
    fit = codes.numel() == 0 or (codes.min() >= -128 and codes.max() <= 127)
    return codes.to(torch.int8) if fit else codes


def _weight_blocks(linear: Linear) -> Iterator[tuple[int, Tensor]]:
    """The float32 weight, a block of rows at a time; a low-rank gate multiplied out."""
    if linear.factor is None:
        for first, rows in linear.weight.row_blocks():
            yield first, rows.float()
        return
    first_factor = linear.weight.whole().double()
    for first, rows in linear.factor.row_blocks():
        product = torch.zeros(len(rows), first_factor.shape[1], dtype=torch.float64)
        # Term by term, so that no number of threads and no library decides the last bit.
        for i, row in enumerate(first_factor):
            product += rows[:, i, None].double() * row
        yield first, product.float()
