"""Properties of spike_expand: what it makes of counts, spike_collapse undoes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...declare.spec import Case
from ...ops.spike_coding.coding import bounds
from ..verdict.truth import Named
from . import Call, Properties, Values, register
from ._shared import ROWS


def _collapsed(call: Call, a: Values) -> Named:
    trains = call("spike_expand", list(a.values()))["trains"]
    return call("spike_collapse", [trains, a["coding"], a["bit_order"]])


def _wrong_counts(a: Values) -> Iterator[tuple[str, Tensor]]:
    low, high = bounds(a["coding"], a["timesteps"])
    first = torch.tensor(0, device=a["counts"].device)
    for count in (low - 1, high + 1):
        yield f"a count of {count}", a["counts"].index_fill(0, first, count)


register(
    "spike_expand",
    Properties(
        independent=(ROWS,),
        composed=_collapsed,
        wrong_contents={"counts": _wrong_counts},
        huge=Case({"...": (1 << 14,)}, dict(coding="bitwise_signed", timesteps=5)),
    ),
)
