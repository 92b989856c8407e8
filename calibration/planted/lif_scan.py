"""Leaky integrate-and-fire neurons: what spiking libraries and their kernels disagree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Arguments, bug, variant
from .arithmetic import in_float64, reference, same, to_bfloat16

OP = "lif_scan"


def count(a: Arguments, h: Tensor, threshold: Any) -> Tensor:
    """The spikes of a potential."""
    if a["max_count"] == 1:
        fired: Tensor = (h > threshold) if a["strict"] else (h >= threshold)
        return fired.to(h.dtype)
    ratio: Tensor = h / threshold
    ratio = ratio.floor() if a["count_rounding"] == "floor" else ratio.round()
    return torch.nan_to_num(ratio, nan=0.0).clamp(0, a["max_count"])


def scan(
    a: Arguments,
    *,
    spikes: Tensor | None = None,
    count: Callable[[Arguments, Tensor, Any], Tensor] = count,
    gain: Any = None,
    state: Callable[[Tensor], Tensor] = same,
    folded: bool = False,
    floor_first: bool = False,
    taken: Callable[[Tensor, Any], Any] = torch.mul,
    reads: str = "after",
) -> tuple[Tensor, Tensor, Tensor]:
    """Neurons whose reset acts at once; given ``spikes`` replace decisions.

    ``folded`` is the affine form of the charge, ``taken`` what a soft reset subtracts, ``reads`` which potential is
    reported.
    """
    x, leak, threshold = a["x"].float(), leak_of(a), threshold_of(a)
    gain = a["input_gain"] if gain is None else gain
    v, rest = start_of(a), a["v_rest"]
    out, trace = torch.zeros_like(x), torch.zeros_like(x)
    for t in range(len(x)):
        h = leak * v + ((1 - leak) * rest + gain * x[t]) if folded else rest + leak * (v - rest) + gain * x[t]
        h = h.clamp_min(a["v_min"]) if floor_first else h
        out[t] = count(a, h, threshold) if spikes is None else spikes[t]
        v = h - taken(out[t], threshold) if a["reset"] == "soft" else h
        v = torch.where(out[t] > 0, a["v_reset"], h) if a["reset"] == "hard" else v
        v = state(v if floor_first else v.clamp_min(a["v_min"]))
        trace[t] = h if reads == "before" else v
    return out, v, trace if a["return_v"] else x.new_zeros(0)


def leak_of(a: Arguments) -> Any:
    """The decay of each neuron, or of all."""
    return a["decay"] if a["decay_tensor"] is None else a["decay_tensor"].float()


def threshold_of(a: Arguments) -> Any:
    """The threshold of each neuron, or of all."""
    return a["v_threshold"] if a["v_threshold_tensor"] is None else a["v_threshold_tensor"].float()


def start_of(a: Arguments) -> Tensor:
    """The potential before the first step."""
    if a["v0"] is None:
        return torch.full(a["x"].shape[1:], a["v_rest"])
    start: Tensor = a["v0"].float()
    return start


def at_once(a: Arguments, **settings: Any) -> Any:
    """The scan above where resets act at once, the reference where they act a step later."""
    return reference(OP, a) if a["reset_next_step"] else scan(a, **settings)


# ---- right


@variant(OP, "The membrane in float64, spikes and potentials rounded at the end.")
def membrane_in_float64(a: Arguments) -> Any:
    return in_float64(OP, a)


@variant(OP, "The charge as decay * v + (offset + gain * x): one affine map a step.")
def affine_charge(a: Arguments) -> Any:
    return at_once(a, folded=True)


@variant(OP, "Counts by the reciprocal of the threshold.")
def counts_by_the_reciprocal(a: Arguments) -> Any:
    def by_reciprocal(a: Arguments, h: Tensor, threshold: Any) -> Tensor:
        return count(a, h * (1 / threshold), 1.0) if a["max_count"] > 1 else count(a, h, threshold)

    return at_once(a, count=by_reciprocal)


# ---- wrong


@bug(OP, "A spike needs h > threshold where h == threshold suffices: the other libraries' convention.")
def strict_comparison(a: Arguments) -> Any:
    return reference(OP, a, strict=not a["strict"])


@bug(OP, "The soft reset subtracts the old, scalar threshold; the learned one only decides.")
def reset_by_the_old_threshold(a: Arguments) -> Any:
    return at_once(a, taken=lambda s, threshold: s * a["v_threshold"])


@bug(OP, "The learned threshold is ignored.")
def learned_threshold_ignored(a: Arguments) -> Any:
    return reference(OP, a, v_threshold_tensor=None)


@bug(OP, "The learned decay is ignored.")
def learned_decay_ignored(a: Arguments) -> Any:
    return reference(OP, a, decay_tensor=None)


@bug(OP, "The first neuron's decay serves all: a stride of 0.")
def decay_of_the_first(a: Arguments) -> Any:
    decay = a["decay_tensor"]
    first = decay.reshape(-1)[:1].expand(decay.numel()).reshape(decay.shape) if decay is not None else None
    return reference(OP, a, decay_tensor=first)


@bug(OP, "The input's weight is taken to be 1 - decay, as in the form v + (x - v) / tau.")
def gain_from_decay(a: Arguments) -> Any:
    return at_once(a, gain=1 - leak_of(a))


@bug(OP, "Decay leads to 0 instead of v_rest.")
def rest_ignored(a: Arguments) -> Any:
    return reference(OP, a, v_rest=0.0, v0=start_of(a))


@bug(OP, "A hard reset goes to 0 instead of v_reset.")
def reset_to_zero(a: Arguments) -> Any:
    return reference(OP, a, v_reset=0.0)


@bug(OP, "The initial potential is ignored.", check="split")
def initial_potential_ignored(a: Arguments) -> Any:
    return reference(OP, a, v0=None)


@bug(OP, "The last step's reset is missing from the state that is handed on.", check="split")
def last_state_not_reset(a: Arguments) -> Any:
    spikes, final, v = reference(OP, a)
    if a["reset_next_step"] or not len(spikes):
        return spikes, final, v
    return spikes, scan(a | {"return_v": True}, reads="before")[2][-1], v


@bug(OP, "The reported potential is the one before the reset.")
def potential_before_reset(a: Arguments) -> Any:
    return at_once(a, reads="before")


@bug(OP, "A reset that should act a step later acts at once.")
def delayed_reset_at_once(a: Arguments) -> Any:
    return reference(OP, a, reset_next_step=False)


@bug(OP, "The membrane is kept in bfloat16 from step to step.")
def membrane_in_bfloat16(a: Arguments) -> Any:
    return at_once(a, state=to_bfloat16)


@bug(OP, "The membrane is kept in the input's dtype from step to step.")
def membrane_in_the_inputs_dtype(a: Arguments) -> Any:
    return at_once(a, state=lambda v: v.to(a["x"].dtype).float())


@bug(OP, "Counts are not clipped to max_count.")
def counts_not_clipped(a: Arguments) -> Any:
    def endless(a: Arguments, h: Tensor, threshold: Any) -> Tensor:
        return count(a if a["max_count"] == 1 else a | {"max_count": 256}, h, threshold)

    return at_once(a, count=endless)


@bug(OP, "Counts round halves away from zero.")
def count_ties_away(a: Arguments) -> Any:
    def away(a: Arguments, h: Tensor, threshold: Any) -> Tensor:
        if a["max_count"] == 1 or a["count_rounding"] == "floor":
            return count(a, h, threshold)
        up: Tensor = (h / threshold + 0.5).floor()
        return up.clamp(0, a["max_count"])

    return at_once(a, count=away)


@bug(OP, "A soft reset subtracts one threshold however many spikes there were.")
def soft_reset_once(a: Arguments) -> Any:
    return at_once(a, taken=lambda s, threshold: s.clamp_max(1) * threshold)


@bug(OP, "The potential's floor applies before the reset instead of after it.")
def floor_before_reset(a: Arguments) -> Any:
    return at_once(a, floor_first=True)


@bug(OP, "A potential of NaN fires: the test is written as not (h < threshold).")
def nan_fires(a: Arguments) -> Any:
    return at_once(a, count=lambda a, h, threshold: torch.where(h.isnan(), 1.0, count(a, h, threshold)))


@bug(OP, "Time in tiles of 8 steps, each of which starts from v0.")
def state_lost_between_tiles(a: Arguments) -> Any:
    if len(a["x"]) <= 8:
        return reference(OP, a)
    parts = [reference(OP, a | {"x": x}) for x in a["x"].split(8)]
    voltages = torch.cat([p[2] for p in parts]) if a["return_v"] else parts[0][2]
    return torch.cat([p[0] for p in parts]), parts[-1][1], voltages
