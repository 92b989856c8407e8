"""Gated linear attention: kernels that are right in several ways, and wrong in more."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, same, split_bfloat16, to_bfloat16, to_tf32
from .gated_linear_attention_kernel import channels, chunked, decayed, recurrent, sequences, step

OP = "gated_linear_attention"

# ---- right


@variant(OP, "A recurrence with query heads beside each other.")
def recurrence(a: Arguments) -> Any:
    return recurrent(a)


@variant(OP, "Chunks of 16 steps.")
def chunks_of_16(a: Arguments) -> Any:
    return chunked(a)


@variant(OP, "Chunks of 7 steps in float64.")
def chunks_of_7_in_float64(a: Arguments) -> Any:
    return chunked(a, block=7, inner=torch.float64)


@variant(OP, "Powers of two for the decays.")
def exp2_for_exp(a: Arguments) -> Any:
    return chunked(a, block=32, exp=lambda t: torch.exp2(t * math.log2(math.e)))


@variant(OP, "With 16-bit inputs, keys into the memory as two bfloat16 numbers: a matrix unit without float32.")
def keys_split_in_bfloat16(a: Arguments) -> Any:
    return chunked(a, key=same if a["q"].dtype == torch.float32 else split_bfloat16)


@variant(OP, "Scores within a chunk and decayed queries rounded to the inputs' dtype, as matrix units want them.")
def scores_in_the_inputs_dtype(a: Arguments) -> Any:
    return chunked(a, score=lambda t: t.to(a["q"].dtype).to(t.dtype))


@variant(OP, "The scale on the outputs.")
def scale_on_the_outputs(a: Arguments) -> Any:
    o, final = recurrent(a | {"scale": 1.0})
    return o * a["scale"], final


@variant(OP, "Everything in float64.")
def wide(a: Arguments) -> Any:
    return in_float64(OP, a)


# ---- wrong


@bug(OP, "The memory between chunks in bfloat16: half the traffic, and in most tests no visible harm.")
def memory_in_bfloat16(a: Arguments) -> Any:
    return chunked(a, memory=to_bfloat16)


@bug(OP, "Decayed keys rounded to bfloat16 before they enter the memory, as the matrix unit takes them.")
def keys_in_bfloat16(a: Arguments) -> Any:
    return chunked(a, key=to_bfloat16)


@bug(OP, "The final memory is returned in the inputs' dtype and widened again.")
def final_state_rounded(a: Arguments) -> Any:
    o, final = chunked(a)
    return o, final.to(a["q"].dtype).float()


@bug(OP, "Products in TF32, the default that a framework flag turned on.")
def products_in_tf32(a: Arguments) -> Any:
    return chunked(a, factor=to_tf32)


@bug(OP, "Query heads take key/value heads by remainder where groups are consecutive.")
def heads_by_remainder(a: Arguments) -> Any:
    return recurrent(a, heads=False)


@bug(OP, "The second chunk's decay is left out: its gates were loaded with the first chunk's mask.")
def one_chunk_ungated(a: Arguments) -> Any:
    return chunked(a, ungated=1)


@bug(OP, "A last chunk that isn't full gives outputs but isn't written to the memory.")
def last_chunk_not_carried(a: Arguments) -> Any:
    return chunked(a, keeps_tail=False)


@bug(OP, "A sequence of whole chunks of 64 ends one chunk early: a loop bound of (T - 1) // 64.")
def last_full_chunk_not_carried(a: Arguments) -> Any:
    o, final = chunked(a, block=64)
    steps = a["q"].shape[1]
    if steps % 64 or not steps or a["cu_seqlens"] is not None or not a["output_final_state"]:
        return o, final
    short = {n: a[n][:, :-64] for n in "qkvg"}
    return o, chunked(a | short, block=64)[1]


@bug(OP, "The initial memory is ignored.", check="split")
def initial_state_ignored(a: Arguments) -> Any:
    return reference(OP, a, initial_state=None)


@bug(OP, "Every sequence starts from the first one's memory: a batch stride of 0.")
def initial_state_of_the_first(a: Arguments) -> Any:
    state = a["initial_state"]
    return reference(OP, a, initial_state=state if state is None else state[:1].expand(state.shape))


@bug(OP, "The scale goes to queries and keys, and with the keys into the memory.")
def scale_on_keys_too(a: Arguments) -> Any:
    return reference(OP, a, k=a["k"] * a["scale"])


@bug(OP, "The gate is applied after the write, so it decays the present key as well.")
def gate_after_the_write(a: Arguments) -> Any:
    def late(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = decayed(decay, state + k[..., None] * v[:, None])
        return q @ state, state

    return recurrent(a, step=late)


@bug(OP, "The output is read before the present step is written: a strict causal mask.")
def read_before_the_write(a: Arguments) -> Any:
    def early(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return q @ decayed(decay, state), step(q, k, v, decay, state)[1]

    return recurrent(a, step=early)


@bug(OP, "Decay between two steps as exp of a difference of running sums: loses resets, gives NaN.", check="resets")
def resets_by_log_sums(a: Arguments) -> Any:
    q, k, v = (a[n].float() for n in "qkv")
    sums, rep = channels(a).cumsum(1), q.shape[2] // k.shape[2]
    k, v, sums = (t.repeat_interleave(rep, 2) for t in (k, v, sums))
    seen = torch.ones(q.shape[1], q.shape[1]).tril()[None, :, :, None]
    between = (sums[:, :, None] - sums[:, None]).exp()
    weights = torch.einsum("bthk,bshk,btshk->btsh", q * a["scale"], k, between) * seen
    return torch.einsum("btsh,bshv->bthv", weights, v), reference(OP, a)[1]


@bug(OP, "Gates are clamped to -5 to keep cumulated products in range, so nothing is ever forgotten at once.")
def gates_clamped(a: Arguments) -> Any:
    return reference(OP, a, g=a["g"].clamp_min(-5))


@bug(OP, "Gates rounded to the inputs' dtype where they come in float32.", check="alternatives")
def gates_in_the_inputs_dtype(a: Arguments) -> Any:
    return reference(OP, a, g=a["g"].to(a["q"].dtype))


@bug(OP, "A gate of each channel is read as one of each head, that of the first channel.")
def first_channel_gates_all(a: Arguments) -> Any:
    return reference(OP, a, g=a["g"][..., 0] if a["g"].dim() == 4 else a["g"])


@bug(OP, "The memory is returned as [V, K], which shows only if someone looks at a square one.")
def square_state_transposed(a: Arguments) -> Any:
    o, final = reference(OP, a)
    return o, final.transpose(-1, -2) if final.dim() == 4 and final.shape[-1] == final.shape[-2] else final


@bug(OP, "Outputs behind the last packed sequence are left as they are.")
def padding_not_cleared(a: Arguments) -> Any:
    o, final = reference(OP, a)
    if a["cu_seqlens"] is not None:
        o[:, int(a["cu_seqlens"][-1]) :] = 1
    return o, final


@bug(OP, "The memory isn't cleared between packed sequences.", check="packed")
def memory_leaks_over_boundaries(a: Arguments) -> Any:
    return recurrent(a, carry=a["cu_seqlens"] is not None)


@bug(OP, "An empty packed sequence gives a memory of zeros instead of handing its own through.")
def empty_sequence_forgets(a: Arguments) -> Any:
    o, final = reference(OP, a)
    for n, _, start, end in sequences(a):
        if start == end and final.numel():
            final[n] = 0
    return o, final


@bug(OP, "One scale for all values of a call, that of the largest: the future rounds the past.", check="causality")
def values_scaled_by_their_largest(a: Arguments) -> Any:
    largest = a["v"].float().abs().amax() if a["v"].numel() else 1.0
    state = a["initial_state"]
    o, final = recurrent(
        a | {"v": a["v"].float() / largest, "initial_state": state if state is None else state / largest}
    )
    return o * largest, final * largest


@bug(OP, "A mask of s <= t + 1 within chunks: each step sees the next one's key.", check="causality")
def next_step_seen(a: Arguments) -> Any:
    o, final = chunked(a)
    rep = a["q"].shape[2] // a["k"].shape[2]
    k, v = (a[n][:, 1:].float().repeat_interleave(rep, 2) for n in "kv")
    early = a["q"][:, :-1].float() * a["scale"]
    o[:, :-1] += (early * k).sum(-1, keepdim=True) * v
    return o, final
