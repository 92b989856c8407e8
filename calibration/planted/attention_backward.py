"""Attention's gradients: the formula written out, right in several ways and wrong in more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, same, to_tf32
from .attention_kernel import Mask, Rounding, spans, visible

OP = "attention_backward"


def of_groups(t: Tensor, heads: int) -> Tensor:
    """Sums what the query heads of each group give their key/value head, [Hq, ...] to [H, ...]."""
    groups: Tensor = t.unflatten(0, (heads, len(t) // heads))
    return groups.sum(1)


def gradients(
    a: Arguments,
    *,
    mask: Mask = visible,
    exp: Rounding = torch.exp,
    factor: Rounding = same,
    blocks: int = 1,
    weights: Rounding = same,
    mean: float = 1.0,
    lse: float = 1.0,
    dq: float = 1.0,
    dk: float = 1.0,
    groups: Callable[[Tensor, int], Tensor] = of_groups,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and v, keys in a number of blocks; the numbers are factors on terms, 1 where right."""
    q, k, v = (factor(a[n].float()) for n in "qkv")
    rep = q.shape[2] // k.shape[2]
    grads = [torch.zeros_like(t) for t in (q, k, v)]
    do = torch.zeros(*q.shape[:3], v.shape[-1]) if a["grad_o"] is None else factor(a["grad_o"].float())
    through = torch.zeros_like(a["lse"]) if a["grad_lse"] is None else a["grad_lse"] * lse
    through = through - mean * (do * a["o"].float()).sum(-1).transpose(1, 2)
    for b, rows, keys in spans(a):
        n, m = rows.stop - rows.start, keys.stop - keys.start
        size = max(1, -(-m // blocks))
        for start in range(0, m, size):
            place = slice(keys.start + start, min(keys.start + start + size, keys.stop))
            qs, g = q[b, rows].transpose(0, 1), do[b, rows].transpose(0, 1)
            ks, vs = (t[b, place].repeat_interleave(rep, 1).transpose(0, 1) for t in (k, v))
            seen = mask(a, n, m, torch.arange(start, start + ks.shape[1]))
            scores = a["scale"] * (qs @ ks.transpose(1, 2))
            p = torch.where(seen, exp(scores - a["lse"][b, :, rows, None]), 0.0)
            ds = weights(p * (g @ vs.transpose(1, 2) + through[b, :, rows, None]))
            p = weights(p)
            grads[0][b, rows] += dq * a["scale"] * (ds @ ks).transpose(0, 1)
            grads[1][b, place] = groups(dk * a["scale"] * (ds.transpose(1, 2) @ qs), k.shape[2]).transpose(0, 1)
            grads[2][b, place] = groups(p.transpose(1, 2) @ g, k.shape[2]).transpose(0, 1)
    return grads[0], grads[1], grads[2]


# ---- right


@variant(OP, "The formula with the mean of the gradient read off the saved output.")
def formula(a: Arguments) -> Any:
    return gradients(a)


@variant(OP, "The formula over three blocks of keys, the query's gradient summed from block to block.")
def formula_in_blocks(a: Arguments) -> Any:
    return gradients(a, blocks=3)


@variant(OP, "Probabilities and their gradients rounded to the inputs' dtype, as matrix units want them.")
def probabilities_in_the_inputs_dtype(a: Arguments) -> Any:
    return gradients(a, weights=lambda w: w.to(a["q"].dtype).to(w.dtype))


@variant(OP, "Powers of two for exponentials.")
def exp2_for_exp(a: Arguments) -> Any:
    return gradients(a, exp=lambda t: torch.exp2(t * math.log2(math.e)))


@variant(OP, "Everything in float64.")
def wide(a: Arguments) -> Any:
    return in_float64(OP, a)


# ---- wrong


@bug(OP, "The gradient of LSE is dropped, as in kernels that never return LSE to autograd.")
def lse_gradient_ignored(a: Arguments) -> Any:
    return reference(OP, a, grad_lse=None)


@bug(OP, "The gradient of LSE enters with the sign of the mean that it joins.")
def lse_gradient_subtracted(a: Arguments) -> Any:
    return gradients(a, lse=-1.0)


@bug(OP, "The softmax's own derivative is forgotten: no mean is subtracted.")
def mean_not_subtracted(a: Arguments) -> Any:
    return gradients(a, mean=0.0)


@bug(OP, "The query's gradient lacks the scale that was folded into the queries.")
def query_gradient_unscaled(a: Arguments) -> Any:
    return gradients(a, dq=1 / a["scale"])


@bug(OP, "The key's gradient has the scale twice: the queries that it multiplies were scaled already.")
def key_gradient_scaled_twice(a: Arguments) -> Any:
    return gradients(a, dk=a["scale"])


@bug(OP, "Of the query heads that share a key, only the last one's gradient is kept: a store for an add.")
def group_not_summed(a: Arguments) -> Any:
    return gradients(a, groups=lambda t, heads: t.unflatten(0, (heads, len(t) // heads))[:, -1])


@bug(OP, "The window is one wider backwards than forwards.")
def window_one_too_wide(a: Arguments) -> Any:
    return gradients(a, mask=lambda a, n, m, key: visible(a | {"window": a["window"] and a["window"] + 1}, n, m, key))


@bug(OP, "Hidden scores get a gradient: the mask was applied forwards only.")
def mask_forgotten(a: Arguments) -> Any:
    return gradients(a, mask=lambda a, n, m, key: torch.ones(n, len(key), dtype=torch.bool))


@bug(OP, "Sinks are known forwards only.")
def sinks_forgotten(a: Arguments) -> Any:
    return gradients(a, mask=lambda a, n, m, key: visible(a | {"sinks": 0}, n, m, key))


@bug(OP, "Probabilities from a natural LSE by powers of two.")
def base_2_probabilities(a: Arguments) -> Any:
    return gradients(a, exp=torch.exp2)


@bug(OP, "Products in TF32.")
def products_in_tf32(a: Arguments) -> Any:
    return gradients(a, factor=to_tf32)


@bug(OP, "Keys behind a row's length get gradients, and with them whatever the cache holds there.", check="padding")
def lengths_ignored(a: Arguments) -> Any:
    return gradients(a | {"kv_lengths": None})
