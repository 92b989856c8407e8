"""What the properties of several operators are put together from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import Independent, Pair, Relation, Values

GROUPS = (1, 2, 3, 7)
ROWS, HEADS = Independent("..."), Independent("H", ("Hq",))
GROUPED_HEADS: Mapping[str, Callable[[Values], Sequence[int]]] = {
    "H": lambda known: GROUPS,
    "Hq": lambda known: [known["H"] * size for size in GROUPS],
}


def times(factor: float, a: Values, *names: str) -> dict[str, Any]:
    """Some arguments times a factor; those that are absent stay so."""
    return {n: None if a[n] is None else factor * a[n] for n in names}


def ones(a: Values, *names: str) -> dict[str, Tensor]:
    """Ones for those of some tensors that are given."""
    return {n: torch.ones_like(a[n]) for n in names if a[n] is not None}


def one_then(first: float, like: Tensor, axis: int, at: int = 0) -> Tensor:
    """Ones, but for one large number on an axis."""
    found = torch.ones_like(like)
    found.select(axis, at).fill_(first)
    return found


def per_query(a: Values, name: str) -> Tensor:
    """Keys, values or a state for every query head, the head axis second."""
    tensor: Tensor = a[name] if name == "initial_state" else a[name].transpose(1, 2)
    return tensor.repeat_interleave(a["q"].shape[2] // a["k"].shape[2], 1)


def _scale_moved_into_queries(a: Values) -> Pair:
    # not exactly: what decays to the smallest numbers is rounded in other places
    return Pair(times(4.0, a, "q") | times(0.25, a, "scale"), factors={"grad_q": 4.0}, exact=False)


SCALE = {"scale_moved_into_queries": Relation(_scale_moved_into_queries)}
