"""Attention: kernels that are right in several ways, and wrong in more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, to_bfloat16, to_tf32
from .attention_kernel import blocked, spans, visible

OP = "attention"

# ---- right


@variant(OP, "Online softmax in blocks of 16 keys.")
def online_in_blocks_of_16(a: Arguments) -> Any:
    return blocked(a)


@variant(OP, "Online softmax in blocks of 5 keys: other maxima, other sums.")
def online_in_blocks_of_5(a: Arguments) -> Any:
    return blocked(a, block=5)


@variant(OP, "Powers of two for exponentials, as processors without exp have them.")
def exp2_for_exp(a: Arguments) -> Any:
    return blocked(a, exp=lambda t: torch.exp2(t * math.log2(math.e)))


@variant(OP, "Probabilities rounded to the inputs' dtype before they meet the values, as matrix units want them.")
def probabilities_in_the_inputs_dtype(a: Arguments) -> Any:
    return blocked(a, block=32, weights=lambda w: w.to(a["q"].dtype).to(w.dtype))


@variant(OP, "The scale folded into the queries.")
def scale_folded_into_queries(a: Arguments) -> Any:
    return blocked(a | {"q": a["q"].float() * a["scale"], "scale": 1.0})


@variant(OP, "Keys in two halves, each on its own, merged by LSE: how decoders split long caches.")
def two_halves_merged(a: Arguments) -> Any:
    parts = [blocked(a, mask=partial(_half, upper=upper)) for upper in (False, True)]
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    safe = torch.where(lse == -torch.inf, 0.0, lse)
    return sum(o * (part - safe).exp().transpose(1, 2)[..., None] for o, part in parts), lse


def _half(a: Arguments, queries: int, keys: int, key: Tensor, upper: bool) -> Tensor:
    return visible(a, queries, keys, key) & ((key >= keys // 2) == upper)


@variant(OP, "Everything in float64.")
def wide(a: Arguments) -> Any:
    return in_float64(OP, a)


# ---- wrong


@bug(
    OP, "A window that counts the keys before the query sees one more: the convention of other libraries, untranslated."
)
def window_one_too_wide(a: Arguments) -> Any:
    return reference(OP, a, window=a["window"] and a["window"] + 1)


@bug(OP, "The window's lower bound is tested with >= on the wrong side, so each query loses its oldest key.")
def window_one_too_narrow(a: Arguments) -> Any:
    return blocked(
        a, mask=lambda a, n, m, key: visible(a | {"window": (a["window"] and a["window"] - 1) or 0}, n, m, key)
    )


@bug(OP, "Causality aligned at the top left, as flash-attn was before 2.1: wrong as soon as there are older keys.")
def aligned_top_left(a: Arguments) -> Any:
    return blocked(a, mask=lambda a, n, m, key: visible(a, n, n, key))


@bug(OP, "The diagonal is hidden: < for <= in a hand-written mask.")
def own_key_hidden(a: Arguments) -> Any:
    return blocked(a, mask=lambda a, n, m, key: visible(a, n, m, key) & (key != torch.arange(n)[:, None] + m - n))


@bug(OP, "Query heads take key/value heads by remainder where groups are consecutive.")
def heads_by_remainder(a: Arguments) -> Any:
    return blocked(a, heads=lambda head, queries, keys: head % keys)


@bug(OP, "The scale applied to the queries by the caller and to the scores by the kernel.")
def scale_twice(a: Arguments) -> Any:
    return reference(OP, a, scale=a["scale"] ** 2)


@bug(OP, "The scale is always 1 / sqrt(D), whatever the caller asks for.")
def scale_argument_ignored(a: Arguments) -> Any:
    return reference(OP, a, scale=a["q"].shape[-1] ** -0.5)


@bug(OP, "LSE in base 2, left over from exp2: merging two calls goes wrong far from here.")
def lse_in_base_2(a: Arguments) -> Any:
    o, lse = reference(OP, a)
    return o, lse * math.log2(math.e)


@bug(OP, "LSE without the maximum that was subtracted before the exponentials.")
def lse_without_the_maximum(a: Arguments) -> Any:
    return blocked(a, shift_in_lse=False)


@bug(OP, "LSE stored in the inputs' dtype, so ring attention merges with 8 bits.")
def lse_rounded(a: Arguments) -> Any:
    o, lse = blocked(a)
    return o, to_bfloat16(lse)


@bug(OP, "Sinks are parsed and dropped.")
def sinks_ignored(a: Arguments) -> Any:
    return reference(OP, a, sinks=0)


@bug(OP, "Sinks are exempt from the window but not from causality, so early queries miss some.")
def sinks_only_in_the_past(a: Arguments) -> Any:
    return blocked(
        a, mask=lambda a, n, m, key: visible(a, n, m, key) & visible(a | {"window": 0, "sinks": 0}, n, m, key)
    )


@bug(OP, "A padded cache is read to its end: lengths are ignored.", check="padding")
def lengths_ignored(a: Arguments) -> Any:
    return reference(OP, a, kv_lengths=None)


@bug(OP, "Lengths hide keys, but queries are still aligned with the end of the padded cache.")
def lengths_do_not_align(a: Arguments) -> Any:
    width = a["k"].shape[1]
    keys = width if a["kv_lengths"] is not None else None
    return blocked(a, mask=lambda a, n, m, key: visible(a, n, keys or m, key))


@bug(OP, "Packed sequences are run as one long one.", check="packed")
def packing_ignored(a: Arguments) -> Any:
    return reference(OP, a, cu_seqlens_q=None, cu_seqlens_k=None)


@bug(
    OP,
    "The first key of each packed sequence is the last of the one before: an offset rounded down by the tile loader.",
)
def boundary_leaks_a_key(a: Arguments) -> Any:
    def shifted(a: Arguments) -> Iterator[tuple[int, slice, slice]]:
        for b, rows, keys in spans(a):
            yield b, rows, slice(max(keys.start - 1, 0) if a["cu_seqlens_k"] is not None else keys.start, keys.stop)

    return blocked(a, spans=shifted)


@bug(OP, "The last tile of keys is filled up with zeros that nothing masks where causality doesn't.")
def tail_tile_unmasked(a: Arguments) -> Any:
    return blocked(a, padded=not a["causal"])


@bug(OP, "Hidden scores are a large negative number, so a query that sees nothing averages all values.")
def dead_rows_average(a: Arguments) -> Any:
    return blocked(a, hidden=-1e9)


@bug(OP, "The output so far isn't rescaled when a later block raises the maximum.")
def no_rescale_of_earlier_blocks(a: Arguments) -> Any:
    return blocked(a, rescaled=False)


@bug(OP, "No maximum is subtracted: exponentials overflow at the scores of a trained model.")
def no_maximum_subtracted(a: Arguments) -> Any:
    return blocked(a, shifted=False)


@bug(OP, "Decode, the special path for one query, forgets the window.")
def decode_forgets_the_window(a: Arguments) -> Any:
    return reference(OP, a, window=0 if a["q"].shape[1] == 1 else a["window"])


@bug(OP, "causal=False is not passed on.")
def always_causal(a: Arguments) -> Any:
    return reference(OP, a, causal=True)


@bug(OP, "Products in TF32, the default that a framework flag turned on.")
def products_in_tf32(a: Arguments) -> Any:
    return blocked(a, factor=to_tf32)


@bug(OP, "A fast exponential: the fraction of the power of two by a cubic, good to 13 bits.")
def cubic_exp(a: Arguments) -> Any:
    return blocked(a, exp=_cubic_exp)


def _cubic_exp(t: Tensor) -> Tensor:
    power = t.clamp_min(-80) * math.log2(math.e)
    f = power - power.floor()
    return torch.where(t < -80, 0.0, torch.ldexp(1 + f * (0.6952 + f * (0.2276 + 0.0772 * f)), power.floor()))


@bug(OP, "The output is kept in the inputs' dtype from block to block, so that it fits in registers.")
def output_accumulated_in_the_inputs_dtype(a: Arguments) -> Any:
    return blocked(a, sums=lambda t: t.to(a["q"].dtype).to(t.dtype))


@bug(OP, "Padding is weighted by zero rather than left out, and zero times NaN is NaN.", check="padding")
def padding_weighted_by_zero(a: Arguments) -> Any:
    o, lse = blocked(a)
    return o + (0.0 * a["v"].float()).sum((1, 2))[:, None, None], lse


@bug(OP, "One scale for all values, that of its largest: what comes later rounds what came before.", check="causality")
def values_scaled_by_their_largest(a: Arguments) -> Any:
    largest = a["v"].float().abs().amax() if a["v"].numel() else 1.0
    o, lse = blocked(a | {"v": a["v"].float() / largest})
    return o * largest, lse
