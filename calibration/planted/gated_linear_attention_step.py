"""One step of gated linear attention in place: what decoders get wrong about slots and memories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import reference, same, to_bfloat16, to_tf32
from .gated_linear_attention_kernel import Rounding, channels, decayed

OP = "gated_linear_attention_step_"


def advance(
    a: Arguments,
    *,
    inner: torch.dtype = torch.float32,
    factor: Rounding = same,
    memory: Rounding = same,
    late_gate: bool = False,
    early_read: bool = False,
    remainder: bool = False,
    skips: bool = True,
    writes: bool = True,
) -> Tensor:
    """All rows at once, by gather and scatter of the memories."""
    q, k, v = (factor(a[n].to(inner)) for n in "qkv")
    heads, rows = k.shape[1], torch.arange(len(q))
    slots = rows if a["slots"] is None else a["slots"].long()
    used = rows[slots >= 0] if skips else rows
    decay, old = channels(a, inner)[used].exp(), a["state"][slots[used]].to(inner)
    write = k[used][..., None] * v[used][:, :, None]
    new = decayed(decay, old + write) if late_gate else decayed(decay, old) + write
    new = memory(new)
    queries = a["scale"] * q[used]
    read = old if early_read else new
    group = q.shape[1] // heads
    queries = (
        queries.unflatten(1, (group, heads)).transpose(1, 2) if remainder else queries.unflatten(1, (heads, group))
    )
    out = queries @ read
    o = torch.zeros(*q.shape[:2], v.shape[-1], dtype=inner)
    o[used] = (out.transpose(1, 2) if remainder else out).flatten(1, 2)
    if writes:
        a["state"][slots[used]] = new.to(a["state"].dtype)
    return o


# ---- right


@variant(OP, "All rows at once: gather, one batched product, scatter.")
def gathered(a: Arguments) -> Any:
    return advance(a)


@variant(OP, "In float64, rounded into the memories at the end.")
def gathered_in_float64(a: Arguments) -> Any:
    return advance(a, inner=torch.float64)


# ---- wrong


@bug(OP, "Slot -1 is not skipped and, as an index, means the last memory: it belongs to another request.")
def skipped_row_writes_the_last_slot(a: Arguments) -> Any:
    return advance(a, skips=False)


@bug(OP, "Slots are ignored: row b advances memory b.")
def slots_ignored(a: Arguments) -> Any:
    return reference(OP, a, slots=None, state=a["state"][: len(a["q"])])


@bug(OP, "The output is right but the memory isn't written back.")
def memory_not_written(a: Arguments) -> Any:
    return advance(a, writes=False)


@bug(OP, "The output is read from the memory before the step.")
def read_before_the_write(a: Arguments) -> Any:
    return advance(a, early_read=True)


@bug(OP, "The gate is applied after the write.")
def gate_after_the_write(a: Arguments) -> Any:
    return advance(a, late_gate=True)


@bug(OP, "The memory is rounded to bfloat16 at each step: a server's memories halved.")
def memory_in_bfloat16(a: Arguments) -> Any:
    return advance(a, memory=to_bfloat16)


@bug(OP, "Query heads take memories by remainder where groups are consecutive.")
def heads_by_remainder(a: Arguments) -> Any:
    return advance(a, remainder=True)


@bug(OP, "The scale is always 1 / sqrt(K), whatever the caller asks for.")
def scale_argument_ignored(a: Arguments) -> Any:
    return reference(OP, a, scale=a["q"].shape[-1] ** -0.5)


@bug(OP, "Products in TF32.")
def products_in_tf32(a: Arguments) -> Any:
    return advance(a, factor=to_tf32)


@bug(OP, "Gates are clamped to -5, so a reset leaves a shade of the request before.", check="resets")
def gates_clamped(a: Arguments) -> Any:
    return reference(OP, a, g=a["g"].clamp_min(-5))
