"""Gradients of leaky integrate-and-fire neurons: surrogates at the wrong place, resets with the wrong gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal.ops.neurons.surrogates import SURROGATES

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, same, to_bfloat16
from .lif_scan import leak_of, scan, start_of, threshold_of

OP = "lif_scan_backward"
LEARNED = ("x", "v0", "decay_tensor", "v_threshold_tensor")


def backwards(
    a: Arguments,
    *,
    state: Callable[[Tensor], Tensor] = same,
    slope_after_reset: bool = False,
    through_time: bool = True,
    threshold_in_reset: bool = True,
) -> Any:
    """Time run backwards by hand, where resets act at once; the reference where they act a step later."""
    if a["reset_next_step"]:
        return reference(OP, a)
    s, leak, threshold = a["spikes"].float(), leak_of(a), threshold_of(a)
    hs, vs = (scan(a | {"return_v": True}, spikes=s, state=state, reads=r)[2] for r in ("before", "after"))
    before = torch.cat([start_of(a)[None], vs])[:-1]
    given = {n: torch.zeros_like(s) if a[n] is None else a[n].float() for n in ("grad_spikes", "grad_v")}
    dv = torch.zeros_like(start_of(a)) if a["grad_v_final"] is None else a["grad_v_final"]
    dx, dleak, dthreshold = torch.zeros_like(s), torch.zeros_like(dv), torch.zeros_like(dv)
    for t in range(len(s) - 1, -1, -1):
        dv = dv + (given["grad_v"][t] if given["grad_v"].numel() else 0)
        left = hs[t] - s[t] * threshold if a["reset"] == "soft" else hs[t]
        left = torch.where(s[t] > 0, a["v_reset"], hs[t]) if a["reset"] == "hard" else left
        dleft = dv if a["v_min"] == -torch.inf else torch.where(left <= a["v_min"], 0.0, dv)
        dh = torch.where(s[t] > 0, 0.0, dleft) if a["reset"] == "hard" else dleft
        ds = given["grad_spikes"][t]
        if a["reset"] != "none" and not a["detach_reset"]:
            ds = ds + dleft * (-threshold if a["reset"] == "soft" else a["v_reset"] - hs[t])
        if a["reset"] == "soft" and threshold_in_reset:
            dthreshold = dthreshold - dleft * s[t]
        many = a["max_count"] > 1
        at = left if slope_after_reset else hs[t]
        u, unit = (at / threshold - 1, 1.0) if many else (at - threshold, threshold)
        slope = ds * SURROGATES[a["surrogate"]](u, unit, a["alpha"], a["beta"], a["max_count"])
        dh = dh + (slope / threshold if many else slope)
        dthreshold = dthreshold - (slope * hs[t] / threshold**2 if many else slope)
        dx[t] = a["input_gain"] * dh
        dleak = dleak + dh * (before[t] - a["v_rest"])
        dv = leak * dh if through_time else torch.zeros_like(dh)
    found = dict(zip(LEARNED, (dx, dv, dleak, dthreshold), strict=True))
    return tuple(torch.zeros(0) if a[n] is None else g for n, g in found.items())


def altered(a: Arguments, name: str, change: Callable[[Tensor], Tensor]) -> Any:
    """The reference's gradients, one of them changed if it is there."""
    found = dict(zip(LEARNED, reference(OP, a), strict=True))
    return tuple((found | {name: change(found[name]) if found[name].numel() else found[name]}).values())


# ---- right


@variant(OP, "Everything in float64.")
def wide(a: Arguments) -> Any:
    return in_float64(OP, a)


@variant(OP, "Time run backwards by hand, the potentials recomputed.")
def by_hand(a: Arguments) -> Any:
    return backwards(a)


# ---- wrong


@bug(OP, "The surrogate is evaluated at the potential after the reset, the only one that was saved.")
def surrogate_after_reset(a: Arguments) -> Any:
    return backwards(a, slope_after_reset=True)


@bug(OP, "detach_reset is ignored: the reset always has a gradient.")
def detach_reset_ignored(a: Arguments) -> Any:
    return reference(OP, a, detach_reset=False)


@bug(OP, "The reset never has a gradient.")
def reset_always_detached(a: Arguments) -> Any:
    return reference(OP, a, detach_reset=True)


@bug(OP, "Surrogates that the kernel doesn't know become the sigmoid.")
def unknown_surrogate_is_the_sigmoid(a: Arguments) -> Any:
    return reference(OP, a, surrogate="sigmoid")


@bug(OP, "The surrogate's width is compiled in.")
def surrogate_width_fixed(a: Arguments) -> Any:
    return reference(OP, a, alpha=2.0)


@bug(OP, "The surrogate's second parameter is dropped.")
def surrogate_beta_ignored(a: Arguments) -> Any:
    return reference(OP, a, beta=0.0)


@bug(OP, "Backpropagation stops at each step: the membrane was detached to save memory.")
def no_gradient_through_time(a: Arguments) -> Any:
    return backwards(a, through_time=False)


@bug(OP, "The gradient of the final potential is dropped.")
def final_potential_gradient_ignored(a: Arguments) -> Any:
    return reference(OP, a, grad_v_final=None)


@bug(OP, "The gradient of the reported potentials is dropped.")
def potentials_gradient_ignored(a: Arguments) -> Any:
    return reference(OP, a, grad_v=None)


@bug(OP, "The initial potential's gradient is zero: training starts each sequence from rest anyway.")
def initial_potential_gradient_missing(a: Arguments) -> Any:
    return altered(a, "v0", torch.zeros_like)


@bug(OP, "A learned threshold gets its gradient with the sign of the potential's.")
def threshold_gradient_negated(a: Arguments) -> Any:
    return altered(a, "v_threshold_tensor", torch.neg)


@bug(OP, "A learned threshold is a constant in the soft reset.")
def threshold_constant_in_reset(a: Arguments) -> Any:
    return backwards(a, threshold_in_reset=False)


@bug(OP, "The input's gradient lacks input_gain.")
def gain_missing(a: Arguments) -> Any:
    return altered(a, "x", lambda g: g / a["input_gain"])


@bug(OP, "The floor of the potential lets gradients through.")
def floor_passes_gradients(a: Arguments) -> Any:
    return reference(OP, a, v_min=float("-inf"))


@bug(OP, "Count surrogates use the limit of single spikes.")
def count_limit_ignored(a: Arguments) -> Any:
    return reference(OP, a, surrogate="straight_through") if a["surrogate"] == "rect_count" else reference(OP, a)


@bug(OP, "Potentials are recomputed in bfloat16.")
def membrane_in_bfloat16(a: Arguments) -> Any:
    return backwards(a, state=to_bfloat16)
