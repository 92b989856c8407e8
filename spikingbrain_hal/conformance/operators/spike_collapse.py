"""Properties of spike_collapse, which is tested behind spike_expand too."""

from __future__ import annotations

import torch

from ...declare.spec import Case
from . import Properties, register
from ._shared import ROWS

register(
    "spike_collapse",
    Properties(
        independent=(ROWS,),
        wrong_contents={"trains": lambda a: [("a spike of 2", torch.full_like(a["trains"], 2))]},
        huge=Case({"S": 5, "...": (1 << 14,)}, dict(coding="bitwise_signed")),
    ),
)
