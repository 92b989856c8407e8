"""The spike coder: thresholds from the wrong numbers, counts that wrap, bits that lose their sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal.ops.spike_coding.coding import bounds

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, wrapped

ENCODE, QUANTIZE, EXPAND, COLLAPSE = "spike_encode", "spike_quantize", "spike_expand", "spike_collapse"
LIMIT = 32767


def mean_of(a: Arguments) -> Tensor:
    """The mean of |x| of each row."""
    x: Tensor = a["x"].float()
    return rounded_as_asked(a, x.abs().sum(-1, keepdim=True) / max(x.shape[-1], 1))


def rounded_as_asked(a: Arguments, mean: Tensor) -> Tensor:
    """The mean in float32, through the input's dtype where the call says so."""
    return mean.to(a["x"].dtype).float() if a.get("mean_dtype") == "input" else mean.float()


def encode(
    a: Arguments,
    *,
    mean: Callable[[Arguments], Tensor] = mean_of,
    rounding: Callable[[Tensor], Tensor] = torch.round,
    reciprocal: bool = False,
    limit: int = LIMIT,
    nan: float = 0.0,
    clamped: bool = True,
) -> tuple[Tensor, Tensor]:
    """Counts and thresholds; serves spike_quantize too, whose limits of the threshold are the defaults."""
    threshold = mean(a) / a["k"]
    threshold = threshold.clamp(a.get("vth_min", 1e-5), a.get("vth_max", 1e4)) if clamped else threshold
    x = a["x"].float()
    ratio = x * (1 / threshold) if reciprocal else x / threshold
    counts = rounding(torch.nan_to_num(ratio, nan=nan, posinf=limit, neginf=-limit))
    return counts.clamp(-limit, limit), threshold


def away_from_zero(ratio: Tensor) -> Tensor:
    """Halves rounded as C's round() does."""
    return ratio.sign() * (ratio.abs() + 0.5).floor()


# ---- spike_encode


@variant(ENCODE, "Division by multiplying with the reciprocal.")
def by_the_reciprocal(a: Arguments) -> Any:
    return encode(a, reciprocal=True)


@variant(ENCODE, "The mean by partial sums of eight lanes.")
def mean_by_lanes(a: Arguments) -> Any:
    def lanes(a: Arguments) -> Tensor:
        x = a["x"].float().abs()
        sums = torch.zeros(*x.shape[:-1], 8)
        for start in range(0, x.shape[-1], 8):
            part = x[..., start : start + 8]
            sums[..., : part.shape[-1]] += part
        mean = sums.sum(-1, keepdim=True) / max(x.shape[-1], 1)
        return rounded_as_asked(a, mean)

    return encode(a, mean=lanes)


@variant(ENCODE, "The mean in float64.")
def mean_in_float64(a: Arguments) -> Any:
    def mean(a: Arguments) -> Tensor:
        return rounded_as_asked(a, a["x"].double().abs().sum(-1, keepdim=True) / max(a["x"].shape[-1], 1))

    return encode(a, mean=mean)


@bug(ENCODE, "Halves are rounded away from zero, as C's round() does.")
def ties_away_from_zero(a: Arguments) -> Any:
    return encode(a, rounding=away_from_zero)


@bug(ENCODE, "Counts are truncated: a cast for a rounding.")
def truncated(a: Arguments) -> Any:
    return encode(a, rounding=torch.trunc)


@bug(ENCODE, "Halves are rounded up: floor(x + 0.5), wrong for half of the ties.")
def halves_up(a: Arguments) -> Any:
    return encode(a, rounding=lambda ratio: (ratio + 0.5).floor())


@bug(ENCODE, "Counts wrap at 8 bits.")
def counts_wrap_at_8_bits(a: Arguments) -> Any:
    counts, threshold = encode(a)
    return wrapped(counts, torch.int8), threshold


@bug(ENCODE, "Counts wrap at 16 bits instead of saturating.")
def counts_wrap_at_16_bits(a: Arguments) -> Any:
    counts, threshold = encode(a, limit=2**24)
    return wrapped(counts, torch.int16), threshold


@bug(ENCODE, "Counts saturate at 127.")
def counts_saturate_at_8_bits(a: Arguments) -> Any:
    return encode(a, limit=127)


@bug(ENCODE, "NaN becomes the most negative count, as the processor's conversion gives it.")
def nan_is_a_count(a: Arguments) -> Any:
    return encode(a, nan=-LIMIT)


@bug(ENCODE, "V_th from the wrong axis: the mean over rows.")
def threshold_from_the_wrong_axis(a: Arguments) -> Any:
    def over_rows(a: Arguments) -> Tensor:
        rows = a["x"].float().abs().reshape(-1, max(a["x"].shape[-1], 1))
        place = torch.arange(a["x"].shape[:-1].numel()) % rows.shape[1]
        means: Tensor = rows.nanmean(0)[place]
        return means.reshape(*a["x"].shape[:-1], 1)

    return encode(a, mean=over_rows)


@bug(ENCODE, "One threshold for the whole tensor.")
def threshold_of_the_tensor(a: Arguments) -> Any:
    return encode(a, mean=lambda a: mean_of(a).mean().expand(*a["x"].shape[:-1], 1))


@bug(ENCODE, "The mean of x instead of |x|.")
def mean_without_absolute_values(a: Arguments) -> Any:
    return encode(a, mean=lambda a: (a["x"].float().sum(-1, keepdim=True) / max(a["x"].shape[-1], 1)).abs())


@bug(ENCODE, "The mean divides by the width rounded up to a vector's.")
def mean_over_the_padded_width(a: Arguments) -> Any:
    width = a["x"].shape[-1]
    return encode(a, mean=lambda a: mean_of(a) * width / max(-(-width // 8) * 8, 1))


@bug(ENCODE, "The row's tail behind the last whole vector is left out of the mean.")
def mean_without_the_tail(a: Arguments) -> Any:
    whole = a["x"].shape[-1] // 8 * 8
    return encode(a, mean=lambda a: mean_of(a | {"x": a["x"][..., :whole]}) * whole / max(a["x"].shape[-1], 1))


@bug(ENCODE, "The mean is always float32, where the released checkpoints round it.")
def mean_not_rounded(a: Arguments) -> Any:
    return reference(ENCODE, a, mean_dtype="float32")


@bug(ENCODE, "The mean is always rounded to the input's dtype.")
def mean_always_rounded(a: Arguments) -> Any:
    return reference(ENCODE, a, mean_dtype="input")


@bug(ENCODE, "The threshold's lower limit is missing: a row of zeros divides by zero.")
def no_smallest_threshold(a: Arguments) -> Any:
    return encode(a, clamped=False)


@bug(ENCODE, "k is compiled in as 3.")
def mean_count_fixed(a: Arguments) -> Any:
    return reference(ENCODE, a, k=3.0)


# ---- spike_quantize


@variant(QUANTIZE, "Division by multiplying with the reciprocal.")
def levels_by_the_reciprocal(a: Arguments) -> Any:
    counts, threshold = encode(a, reciprocal=True)
    return counts * threshold


@variant(QUANTIZE, "Everything in float64.")
def levels_in_float64(a: Arguments) -> Any:
    return in_float64(QUANTIZE, a)


@bug(QUANTIZE, "Halves are rounded away from zero.")
def levels_away_from_zero(a: Arguments) -> Any:
    counts, threshold = encode(a, rounding=away_from_zero)
    return counts * threshold


@bug(QUANTIZE, "The threshold is rounded to the input's dtype before it multiplies the counts: rounded twice.")
def threshold_rounded_first(a: Arguments) -> Any:
    counts, threshold = encode(a)
    return counts * threshold.bfloat16().float()


@bug(QUANTIZE, "Counts pass through int8.")
def levels_saturate_at_8_bits(a: Arguments) -> Any:
    counts, threshold = encode(a, limit=127)
    return counts * threshold


@bug(QUANTIZE, "k is compiled in as 3.")
def mean_level_fixed(a: Arguments) -> Any:
    return reference(QUANTIZE, a, k=3.0)


# ---- spike_expand


@variant(EXPAND, "Bits by division instead of shifts.")
def bits_by_division(a: Arguments) -> Any:
    if "bitwise" not in a["coding"]:
        return reference(EXPAND, a)
    n, steps = a["counts"].long(), list(range(a["timesteps"]))
    bits = torch.stack([n.abs() // 2**i % 2 for i in (steps[::-1] if a["bit_order"] == "msb" else steps)])
    return bits * n.sign()


@bug(EXPAND, "The bit order is ignored.")
def bit_order_ignored(a: Arguments) -> Any:
    return reference(EXPAND, a, bit_order="msb")


@bug(EXPAND, "The sign is lost in two's complement: the bits of the magnitude.")
def sign_lost_in_twos_complement(a: Arguments) -> Any:
    counts = a["counts"].abs() if a["coding"] == "twos_complement" else a["counts"]
    return reference(EXPAND, a, counts=counts)


@bug(EXPAND, "Signed bits come without their sign.")
def sign_lost_in_signed_bits(a: Arguments) -> Any:
    return reference(EXPAND, a).abs() if a["coding"] == "bitwise_signed" else reference(EXPAND, a)


@bug(EXPAND, "One spike too many in unary codes: >= for >.")
def one_spike_too_many(a: Arguments) -> Any:
    n = a["counts"]
    return reference(EXPAND, a, counts=n + n.sign()) if a["coding"] in ("binary", "ternary") else reference(EXPAND, a)


@bug(EXPAND, "Counts pass through int8.")
def counts_pass_through_int8(a: Arguments) -> Any:
    return reference(EXPAND, a, counts=wrapped(a["counts"], torch.int8))


# ---- spike_collapse


@variant(COLLAPSE, "Horner's rule, the highest bit first.")
def horner(a: Arguments) -> Any:
    if a["coding"] in ("binary", "ternary"):
        return a["trains"].flip(0).long().sum(0)
    trains = a["trains"].long() if a["bit_order"] == "msb" else a["trains"].long().flip(0)
    total = -trains[0] if a["coding"] == "twos_complement" else trains[0]
    for bit in trains[1:]:
        total = 2 * total + bit
    return total


@bug(COLLAPSE, "The highest bit of two's complement weighs positive.")
def sign_bit_positive(a: Arguments) -> Any:
    return reference(COLLAPSE, a, coding=a["coding"].replace("twos_complement", "bitwise"))


@bug(COLLAPSE, "The bit order is ignored.")
def collapse_bit_order_ignored(a: Arguments) -> Any:
    return reference(COLLAPSE, a, bit_order="msb")


@bug(COLLAPSE, "Counts are summed in int8.")
def summed_in_int8(a: Arguments) -> Any:
    return wrapped(reference(COLLAPSE, a), torch.int8)


@bug(COLLAPSE, "Negative spikes count as positive ones.")
def negative_spikes_counted(a: Arguments) -> Any:
    return reference(COLLAPSE, a, trains=a["trains"].abs())


@bug(COLLAPSE, "The last step is left out.")
def last_step_left_out(a: Arguments) -> Any:
    low, high = bounds(a["coding"], len(a["trains"]))
    trains = a["trains"].clone()
    trains[-1] = 0
    return reference(COLLAPSE, a, trains=trains).clamp(low, high)
