"""Integer products of counts and codes: registers too narrow, scales of the wrong group or row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, same, to_bfloat16, wrapped

OP, BACKWARD = "spike_linear", "spike_linear_backward"


def group_sums(a: Arguments) -> Tensor:
    """The integer sum of each row, output and group, [rows, N, G]."""
    counts, weight = a["counts"].flatten(0, -2) if a["counts"].dim() > 1 else a["counts"][None], a["weight"]
    groups = a["scales"].shape[1]
    if not groups:
        return torch.zeros(len(counts), len(weight), 0, dtype=torch.long)
    parts = zip(counts.long().split(a["group_size"], 1), weight.long().split(a["group_size"], 1), strict=True)
    return torch.stack([c @ w.T for c, w in parts], -1)


def rows_of(a: Arguments) -> Tensor:
    """What one spike of each row is worth, [rows, 1]."""
    threshold: Tensor = a["v_threshold"].flatten()[:, None]
    return threshold


def linear(
    a: Arguments,
    *,
    sums: Callable[[Tensor], Tensor] = same,
    order: int = 1,
    partial: Callable[[Tensor], Tensor] = same,
    folded: bool = False,
    bias_in_each_group: bool = False,
    bias_inside: bool = False,
) -> Tensor:
    """Groups one after another, forwards or backwards. ``folded`` puts both scales together first."""
    exact, threshold = sums(group_sums(a)).float(), rows_of(a)
    total = torch.zeros(exact.shape[:2])
    bias = 0.0 if a["bias"] is None else a["bias"].float()
    for g in range(exact.shape[2])[::order]:
        scale = threshold * a["scales"][:, g] if folded else a["scales"][:, g]
        total = partial(total + exact[..., g] * scale)
        total = total + bias if bias_in_each_group and g else total
    total = total + bias if bias_inside else total
    y = total if folded else threshold * total
    return (y if bias_inside else y + bias).reshape(*a["counts"].shape[:-1], len(a["weight"]))


# ---- right


@variant(OP, "Groups summed from the last to the first.")
def groups_in_reverse(a: Arguments) -> Any:
    return linear(a, order=-1)


@variant(OP, "The threshold multiplied into the scales.")
def threshold_in_the_scales(a: Arguments) -> Any:
    return linear(a, folded=True)


@variant(OP, "Everything in float64.")
def wide(a: Arguments) -> Any:
    return in_float64(OP, a)


# ---- wrong


@bug(OP, "Counts wrap at 8 bits on their way into an int8 matrix unit.")
def counts_wrap_at_8_bits(a: Arguments) -> Any:
    return reference(OP, a, counts=wrapped(a["counts"], torch.int8))


@bug(OP, "Counts saturate at 127.")
def counts_saturate_at_8_bits(a: Arguments) -> Any:
    return reference(OP, a, counts=a["counts"].clamp(-128, 127))


@bug(OP, "Group sums wrap at 16 bits.")
def sums_wrap_at_16_bits(a: Arguments) -> Any:
    return linear(a, sums=lambda t: wrapped(t, torch.int16))


@bug(OP, "Group sums wrap at 32 bits, which wide codes and long-tailed counts reach.", check="alternatives")
def sums_wrap_at_32_bits(a: Arguments) -> Any:
    return linear(a, sums=lambda t: wrapped(t, torch.int32))


@bug(OP, "Group sums in float16, the accumulator of a matrix unit.")
def sums_in_float16(a: Arguments) -> Any:
    return linear(a, sums=lambda t: t.half())


@bug(OP, "16-bit codes are read as 8-bit ones.", check="alternatives")
def codes_wrap_at_8_bits(a: Arguments) -> Any:
    return reference(OP, a, weight=wrapped(a["weight"], torch.int8))


@bug(OP, "The first group's scale serves all.")
def scale_of_the_first_group(a: Arguments) -> Any:
    return reference(OP, a, scales=a["scales"][:, :1].expand(a["scales"].shape))


@bug(OP, "The next group's scale: off by one where the loop prefetches.")
def scale_of_the_next_group(a: Arguments) -> Any:
    return reference(OP, a, scales=a["scales"].roll(-1, 1))


@bug(OP, "The first row's threshold serves all: V_th from the wrong axis.")
def threshold_of_the_first_row(a: Arguments) -> Any:
    threshold = a["v_threshold"]
    first = rows_of(a)[:1].expand(threshold.numel(), 1).reshape(threshold.shape) if threshold.numel() else threshold
    return reference(OP, a, v_threshold=first)


@bug(OP, "The bias is added before the threshold multiplies.")
def bias_scaled(a: Arguments) -> Any:
    return linear(a, bias_inside=True)


@bug(OP, "The bias is added in every group: the split of K has an epilogue each.")
def bias_in_each_group(a: Arguments) -> Any:
    return linear(a, bias_in_each_group=True)


@bug(OP, "Groups are always of 128 inputs.")
def group_size_fixed(a: Arguments) -> Any:
    groups = a["weight"].shape[1] // a["group_size"]
    place = torch.arange(groups) * a["group_size"] // 128
    return reference(OP, a, scales=a["scales"][:, place])


@bug(OP, "Sums between groups are rounded to the output's dtype.")
def partial_sums_in_the_output_dtype(a: Arguments) -> Any:
    return linear(a, partial=lambda t: t.to(getattr(torch, a["out_dtype"])).float())


@bug(OP, "Scales are rounded to bfloat16: half the bytes.")
def scales_in_bfloat16(a: Arguments) -> Any:
    return reference(OP, a, scales=to_bfloat16(a["scales"]))


@bug(OP, "Outputs behind the last whole tile of 16 aren't computed.")
def tail_of_outputs_missing(a: Arguments) -> Any:
    y = reference(OP, a)
    whole = y.shape[-1] // 16 * 16
    y[..., whole:] = 0
    return y


# ---- gradients


def gradients(
    a: Arguments,
    *,
    inner: torch.dtype = torch.float32,
    by_scale: float | None = None,
    tile: int = 0,
    rounding: Callable[[Tensor], Tensor] = same,
    of_bias: Callable[[Tensor], Tensor] = same,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to v_threshold, scales and bias, by the integer sums of the forward."""
    exact, threshold = group_sums(a).to(inner), rows_of(a).to(inner)
    dy = torch.zeros(exact.shape[:2], dtype=inner) if a["grad_y"] is None else a["grad_y"].reshape(exact.shape[:2])
    dy = dy.to(inner)
    each = rounding((dy * (threshold if by_scale is None else by_scale))[..., None] * exact)
    dscales = each[-(len(each) % tile or tile) :].sum(0) if tile and len(each) > tile else each.sum(0)
    dthreshold = (dy * (exact * a["scales"].to(inner)).sum(-1)).sum(-1)
    dbias = torch.zeros(0) if a["bias"] is None else of_bias(dy).sum(0)
    return dthreshold.reshape(a["v_threshold"].shape), dscales, dbias


@variant(BACKWARD, "By the integer sums of each group, rows added last.")
def by_group_sums(a: Arguments) -> Any:
    return gradients(a)


@variant(BACKWARD, "The same in float64.")
def by_group_sums_in_float64(a: Arguments) -> Any:
    return gradients(a, inner=torch.float64)


@bug(BACKWARD, "The scales' gradient lacks the threshold.")
def scale_gradient_without_threshold(a: Arguments) -> Any:
    return gradients(a, by_scale=1.0)


@bug(BACKWARD, "The bias's gradient is multiplied by the threshold, in front of which it isn't.")
def bias_gradient_scaled(a: Arguments) -> Any:
    return gradients(a, of_bias=lambda dy: dy * rows_of(a))


@bug(BACKWARD, "The threshold's gradient is taken from y, bias and all.")
def threshold_gradient_with_bias(a: Arguments) -> Any:
    dthreshold, dscales, dbias = reference(BACKWARD, a)
    if a["bias"] is None or a["grad_y"] is None:
        return dthreshold, dscales, dbias
    extra = (a["grad_y"].float() * a["bias"].float()).sum(-1, keepdim=True) / a["v_threshold"]
    return dthreshold + extra, dscales, dbias


@bug(BACKWARD, "The scales' gradient goes to the next group.")
def scale_gradient_of_the_next_group(a: Arguments) -> Any:
    dthreshold, dscales, dbias = reference(BACKWARD, a)
    return dthreshold, dscales.roll(1, 1), dbias


@bug(BACKWARD, "Tiles of 1024 rows store the scales' gradient instead of adding it.")
def tiles_of_rows_overwrite(a: Arguments) -> Any:
    return gradients(a, tile=1024)


@bug(BACKWARD, "Counts wrap at 8 bits backwards.")
def counts_wrap_backwards(a: Arguments) -> Any:
    return reference(BACKWARD, a, counts=wrapped(a["counts"], torch.int8))


@bug(BACKWARD, "Terms of the scales' gradient are rounded to bfloat16 before they are added.")
def scale_gradient_in_bfloat16(a: Arguments) -> Any:
    return gradients(a, rounding=to_bfloat16)
