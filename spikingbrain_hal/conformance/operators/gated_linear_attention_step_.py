"""Properties of gated_linear_attention_step_: rows apart as long as each advances the memory of its own place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import Independent, Properties, Values, register
from ._shared import GROUPED_HEADS, HEADS, SCALE, ones


def _large_memory(a: Values, first: float) -> Values:
    settings = {"g": torch.zeros_like(a["g"]), "scale": 1.0, "state": torch.full_like(a["state"], first)}
    return ones(a, "q", "k", "v") | settings


def _wrong_slots(a: Values) -> Iterator[tuple[str, Tensor]]:
    yield "out of range", a["slots"] + len(a["state"])
    yield "below -1", torch.full_like(a["slots"], -2)
    if len(a["slots"]) > 1:
        yield "one twice", torch.zeros_like(a["slots"])


def _slots(known: Values) -> Sequence[int]:
    return [known["B"] + spare for spare in ((0, 1, 3) if "slots" in known["given"] else (0,))]


register(
    "gated_linear_attention_step_",
    Properties(
        magnitude=("q", "k", "v", "state"),
        linear={"o": ("v", "state"), "state": ("v", "state")},
        independent=(HEADS, Independent("B", ("slot",), unless="slots")),
        relations=SCALE,
        factors=("k", "v", "state"),
        one_large_term=_large_memory,
        wrong_contents={"slots": _wrong_slots},
        blocks=("linear",),
        sizes={**GROUPED_HEADS, "slot": _slots},
    ),
)
