"""Gated linear attention's gradients: the recurrence run backwards, right in two ways and wrong in more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, same, to_bfloat16, to_tf32
from .gated_linear_attention_kernel import Rounding, channels, decayed, sequences

OP = "gated_linear_attention_backward"


def gradients(
    a: Arguments,
    *,
    inner: torch.dtype = torch.float32,
    factor: Rounding = same,
    memory: Rounding = same,
    group: slice = slice(None),
    dq: float = 1.0,
    late_gate: bool = False,
    own_key: bool = True,
    carry: bool = False,
    forgets: float = 0.0,
) -> list[Tensor]:
    """Memories forwards, kept; then their gradient backwards. Gates' gradients come for each channel.

    ``group`` chooses the query heads whose gradients are summed, ``forgets`` the largest decay taken for a reset.
    """
    q, k, v = (factor(a[n].to(inner)) for n in "qkv")
    rep, decay = q.shape[2] // k.shape[2], channels(a, inner).exp()
    q = q.unflatten(2, (k.shape[2], rep))
    do = torch.zeros(*q.shape[:4], v.shape[-1], dtype=inner)
    do = do if a["grad_o"] is None else factor(a["grad_o"].to(inner)).unflatten(2, (k.shape[2], rep))
    grads = [torch.zeros_like(t) for t in (q, k, v, decay)]
    spans = list(sequences(a))
    starts = torch.zeros(len(spans), k.shape[2], k.shape[3], v.shape[3], dtype=inner)
    ds = torch.zeros_like(starts[:1]).sum(0)
    for n, b, start, end in reversed(spans):
        states = [starts[n] if a["initial_state"] is None else a["initial_state"][n].to(inner)]
        for t in range(start, end):
            states.append(memory(decayed(decay[b, t], states[-1]) + k[b, t][..., None] * v[b, t][:, None]))
        if a["grad_final_state"] is not None:
            ds = a["grad_final_state"][n].to(inner)
        elif not carry:
            ds = torch.zeros_like(ds)
        for t in range(end - 1, start - 1, -1):
            read = a["scale"] * torch.einsum("hmk,hmv->hkv", q[b, t][:, group], do[b, t][:, group])
            ds, before = ds + read, ds
            grads[0][b, t] = dq * a["scale"] * do[b, t] @ states[t - start + 1].transpose(1, 2)
            write = ds if own_key else before
            grads[1][b, t] = (write * v[b, t][:, None]).sum(-1)
            grads[2][b, t] = (write * k[b, t][..., None]).sum(1)
            old = states[t - start + 1] if late_gate else states[t - start]
            gate = decay[b, t] * (decay[b, t] > forgets)
            grads[3][b, t] = torch.where(gate == 0, 0.0, gate * (ds * old).sum(-1))
            ds = decayed(decay[b, t], ds)
        starts[n] = ds
    grads[0] = grads[0].flatten(2, 3)
    return [*grads, starts if a["initial_state"] is not None else torch.zeros(0)]


def finished(a: Arguments, grads: list[Tensor]) -> tuple[Tensor, ...]:
    """Gates of each head get the sum over their channels."""
    return (*grads[:3], grads[3] if a["g"].dim() == 4 else grads[3].sum(-1), grads[4])


# ---- right


@variant(OP, "The recurrence backwards, every memory kept.")
def memories_kept(a: Arguments) -> Any:
    return finished(a, gradients(a))


@variant(OP, "The recurrence backwards in float64.")
def memories_kept_in_float64(a: Arguments) -> Any:
    return finished(a, gradients(a, inner=torch.float64))


@variant(OP, "Autograd in float64.")
def wide(a: Arguments) -> Any:
    return in_float64(OP, a)


# ---- wrong


def _by_cancellation(a: Arguments, rounded: bool) -> Any:
    """The sum from each step to the end of ``q dq - k dk``, what the final memory adds, at the end."""
    grads = gradients(a)
    dq, dk = (t.to(a["q"].dtype).float() if rounded else t for t in grads[:2])
    group = (a["k"].shape[2], a["q"].shape[2] // a["k"].shape[2])
    each = (a["q"].float() * dq).unflatten(2, group).sum(3) - a["k"].float() * dk
    final = reference("gated_linear_attention", {n: a[n] for n in _FORWARD}, output_final_state=True)[1]
    dg = torch.zeros_like(each)
    for n, b, start, end in sequences(a):
        last = 0.0 if a["grad_final_state"] is None else (a["grad_final_state"][n] * final[n]).sum(-1)
        dg[b, start:end] = each[b, start:end].flip(0).cumsum(0).flip(0) + last
    return finished(a, [*grads[:3], dg, grads[4]])


_FORWARD = ("q", "k", "v", "g", "initial_state", "cu_seqlens", "scale", "output_final_state")


@bug(OP, "The gate's gradient by the identity sum(q dq - k dk): its terms cancel, as most public kernels have it.")
def gate_gradient_by_cancellation(a: Arguments) -> Any:
    return _by_cancellation(a, rounded=False)


@bug(OP, "The same identity, from gradients that were rounded to the inputs' dtype already.")
def gate_gradient_by_rounded_cancellation(a: Arguments) -> Any:
    return _by_cancellation(a, rounded=True)


@bug(OP, "The gradient of the final memory is dropped.")
def final_state_gradient_ignored(a: Arguments) -> Any:
    return reference(OP, a, grad_final_state=None)


@bug(OP, "The query's gradient lacks the scale.")
def query_gradient_unscaled(a: Arguments) -> Any:
    return finished(a, gradients(a, dq=1 / a["scale"]))


@bug(OP, "Of the query heads that share a memory, only the first gives it a gradient.")
def group_not_summed(a: Arguments) -> Any:
    return finished(a, gradients(a, group=slice(1)))


@bug(OP, "The gate's gradient meets the memory after the write: off by one step.")
def gate_meets_the_later_memory(a: Arguments) -> Any:
    return finished(a, gradients(a, late_gate=True))


@bug(OP, "A key's gradient misses the step that wrote it: a strict mask backwards.")
def own_step_missing(a: Arguments) -> Any:
    return finished(a, gradients(a, own_key=False))


@bug(OP, "Recomputed memories are kept in bfloat16.")
def memories_in_bfloat16(a: Arguments) -> Any:
    return finished(a, gradients(a, memory=to_bfloat16))


@bug(OP, "Products in TF32.")
def products_in_tf32(a: Arguments) -> Any:
    return finished(a, gradients(a, factor=to_tf32))


@bug(OP, "The gradient of a packed sequence flows into the one before it.")
def gradient_leaks_over_boundaries(a: Arguments) -> Any:
    packed = a["cu_seqlens"] is not None
    return finished(a, gradients(a | {"grad_final_state": None if packed else a["grad_final_state"]}, carry=packed))


@bug(OP, "Small decays are taken for resets and get no gradient.")
def small_decays_without_gradient(a: Arguments) -> Any:
    return finished(a, gradients(a, forgets=0.05))


@bug(OP, "A gate of each head gets the mean over its channels for the sum.", check="alternatives")
def head_gate_gets_the_mean(a: Arguments) -> Any:
    grads = gradients(a)
    return (*grads[:3], grads[3] if a["g"].dim() == 4 else grads[3].mean(-1), grads[4])


@bug(OP, "The initial memory's gradient is the one before the first step's decay.")
def initial_state_gradient_undecayed(a: Arguments) -> Any:
    grads = gradients(a)
    if grads[4].numel():
        for n, b, start, end in sequences(a):
            grads[4][n] = grads[4][n] / channels(a)[b, start].exp()[..., None] if end > start else grads[4][n]
    return finished(a, grads)


@bug(OP, "An empty packed sequence swallows its memory's gradient.")
def empty_sequence_swallows_gradient(a: Arguments) -> Any:
    grads = gradients(a)
    for n, _, start, end in sequences(a):
        if start == end and grads[4].numel():
            grads[4][n] = 0
    return finished(a, grads)


@bug(OP, "Gradients behind the last packed sequence are left as they are.")
def padding_not_cleared(a: Arguments) -> Any:
    grads = finished(a, gradients(a))
    if a["cu_seqlens"] is not None:
        for t in grads[:4]:
            t[:, int(a["cu_seqlens"][-1]) :] = 1
    return grads
