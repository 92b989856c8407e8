"""Truth for operators that decide spikes: a decision is judged on the path that the earlier decisions led to.

Comparing spikes with an independent run says nothing: one that falls to the other side of a threshold by rounding
changes everything after it. So the float64 membrane is driven with the spikes under test, and each may differ from
the exact decision only where the potential is as close to the threshold as rounding reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...declare.registry import OPERATORS
from ...declare.spec import OpSpec
from ...ops.spike_coding.spike_encode import LIMIT
from .judge import SMALLEST, UNIT_ROUNDOFF, WORKING_ROUNDOFF
from .truth import Named, Truth, in_float64, reference_truth

Replay = Callable[[OpSpec, Sequence[Any], Mapping[str, Tensor]], Truth]
REPLAYS: dict[str, Replay] = {}
MARGIN = 6.0
LIF = OPERATORS["lif_scan"]


def _replays(name: str) -> Callable[[Replay], Replay]:
    def register(function: Replay) -> Replay:
        REPLAYS[name] = function
        return function

    return register


# ---- membranes


@dataclass(frozen=True)
class Membrane:
    """A membrane driven by given spikes, [T, ...] float64.

    Attributes:
        potential: What each spike was decided on.
        unfloored: The state before its lower bound applies.
        margin: How far rounding may have moved either.
        threshold: Of each neuron, or of all.
    """

    potential: Tensor
    unfloored: Tensor
    margin: Tensor
    threshold: Tensor


def drive_membrane(a: Mapping[str, Any], spikes: Tensor) -> Membrane:
    """Runs the membrane with given spikes; ``a`` holds the arguments of lif_scan, floats in float64."""
    states = _reference(a, spikes, return_v=True)["v"]
    x, rest = a["x"], a["v_rest"]
    start = x.new_full(x.shape[1:], rest) if a["v0"] is None else a["v0"].expand(x.shape[1:])
    before = torch.cat([start[None], states])[:-1] if len(x) else states
    leak = a["decay"] if a["decay_tensor"] is None else a["decay_tensor"]
    threshold = x.new_tensor(a["v_threshold"]) if a["v_threshold_tensor"] is None else a["v_threshold_tensor"]
    taken = torch.zeros_like(spikes)
    if a["reset_next_step"]:
        taken = torch.cat([decide(a, start, threshold)[None], spikes])[:-1] if len(x) else spikes
        if a["reset"] == "hard":
            before = torch.where(taken > 0, a["v_reset"], before)
    charged = rest + leak * (before - rest) + a["input_gain"] * x
    left = charged - (taken if a["reset_next_step"] else spikes) * _soft(a, threshold)
    terms = (leak * before).abs() + (a["input_gain"] * x).abs() + charged.abs() + _extra(a, threshold)
    return Membrane(left if a["reset_next_step"] else charged, left, _margins(a, spikes, leak, terms), threshold)


def _margins(a: Mapping[str, Any], spikes: Tensor, leak: Tensor | float, terms: Tensor) -> Tensor:
    """The error of a step is what the last one left, decayed, and its own rounding; a hard reset forgets it."""
    margins, error = torch.empty_like(terms), terms.new_zeros(terms.shape[1:])
    for t in range(len(terms)):
        error = ((leak * error).square() + (WORKING_ROUNDOFF * terms[t]).square()).sqrt()
        margins[t] = MARGIN * error
        if a["reset"] == "hard":
            error = torch.where(spikes[t] > 0, 0.0, error)
    return margins


def _soft(a: Mapping[str, Any], threshold: Tensor) -> Tensor:
    return threshold if a["reset"] == "soft" else torch.zeros_like(threshold)


def _extra(a: Mapping[str, Any], threshold: Tensor) -> Tensor:
    """Terms beside decay and input that rounding is in proportion to: attributes, and what a soft reset subtracts."""
    at_rest: float = abs(a["v_rest"]) + abs(a["v_reset"]) + (abs(a["v_min"]) if a["v_min"] > -torch.inf else 0.0)
    most: int = a["max_count"]
    return _soft(a, threshold).abs() * most + at_rest


def _reference(a: Mapping[str, Any], spikes: Tensor | None, **changed: Any) -> Named:
    values = {**a, **changed}
    results = LIF.reference(*(values[name] for name in LIF.arguments), spikes=spikes)
    return dict(zip(LIF.outputs, results, strict=True))


def decide(a: Mapping[str, Any], potential: Tensor, threshold: Tensor) -> Tensor:
    """The spikes that a potential gives; never fewer where the potential is higher."""
    if a["max_count"] == 1:
        return (potential > threshold if a["strict"] else potential >= threshold).double()
    ratio = potential / threshold
    rounded = ratio.floor() if a["count_rounding"] == "floor" else ratio.round()
    return torch.nan_to_num(rounded, nan=0.0).clamp(0, a["max_count"])


def _magnitudes(a: Mapping[str, Any], extra: Tensor) -> Named:
    """The membrane of absolute values that no spike lowers."""
    absolute = {n: t.abs() if isinstance(t, Tensor) else t for n, t in a.items()}
    quiet = {"reset": "none", "v_rest": abs(a["v_rest"]), "input_gain": abs(a["input_gain"]), "v_min": -torch.inf}
    if a["decay_tensor"] is None and not 0 <= a["decay"] <= 1:  # rest and membrane cancel, or what is added grows
        leak = abs(a["decay"])
        quiet |= {"decay": leak, "v_rest": 0.0, "input_gain": 1.0}
        absolute["x"] = abs(a["input_gain"]) * absolute["x"] + (1 + leak) * extra
    return _reference(absolute, torch.zeros_like(a["x"]), **quiet)


@_replays("lif_scan")
def _replay_spikes(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    narrow = spec.bind(args)
    a = spec.bind(in_float64(spec, args))
    spikes = outputs["spikes"].detach()
    membrane = drive_membrane(a, spikes.double())
    expected = _reference(a, spikes.double())
    exact = decide(a, membrane.potential, membrane.threshold)
    first, last = (decide(a, membrane.potential + side * membrane.margin, membrane.threshold) for side in (-1, 1))
    base = _reference(narrow, spikes)
    extra = _extra(a, membrane.threshold)
    magnitude = _magnitudes(a, extra)
    return Truth(
        expected=expected | {"spikes": exact},
        base=base | {"spikes": spikes.to(narrow["x"].dtype)},
        magnitude={n: t + extra if t.shape == expected[n].shape and t.numel() else t for n, t in magnitude.items()},
        floor={"spikes": first},
        ceiling={"spikes": last},
    )


# ---- derivatives of spikes


def _jumps(a: Mapping[str, Any], membrane: Membrane) -> list[tuple[Tensor, Tensor]]:
    """How far each potential is from where the chosen surrogate, or the floor of the potential, jumps."""
    one = torch.ones_like(membrane.threshold)
    unit, scale = (one, membrane.threshold) if a["max_count"] > 1 else (membrane.threshold, one)
    u = membrane.potential / scale - unit
    slack = membrane.margin / scale.abs()
    distances: list[Tensor] = {
        "rect": [u.abs() - 1 / (2 * a["alpha"])],
        "piecewise_linear": [u.abs() - a["alpha"]],
        "leaky_relu": [u],
        "rect_count": [u + unit, u + unit - a["max_count"] * unit],
    }.get(a["surrogate"], [])
    found = [(d.abs(), slack) for d in distances]
    if a["v_min"] > -torch.inf:
        found.append(((membrane.unfloored - a["v_min"]).abs(), membrane.margin))
    return found


@_replays("lif_scan_backward")
def _replay_gradients(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """Neurons whose potential comes within rounding of a jump at any step are left out, and counted."""
    truth = reference_truth(spec, args)
    a = spec.bind(in_float64(spec, args))
    membrane = drive_membrane(a, a["spikes"])
    near = torch.zeros_like(membrane.potential, dtype=torch.bool)
    for distance, slack in _jumps(a, membrane):
        near |= distance <= slack
    neurons = near.any(0)
    excluded = {name: neurons.expand(t.shape) for name, t in outputs.items() if t.numel() and bool(neurons.any())}
    return Truth(truth.expected, truth.base, truth.magnitude, excluded=excluded)


# ---- counts under a threshold


def _count(ratio: Tensor) -> Tensor:
    return torch.nan_to_num(ratio, nan=0.0, posinf=LIMIT, neginf=-LIMIT).round().clamp(-LIMIT, LIMIT)


def _slack(ratio: Tensor, roundings: int) -> Tensor:
    return torch.where(ratio.isfinite(), roundings * WORKING_ROUNDOFF * ratio.abs(), 0.0)


def _row_threshold(a: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """v_threshold in float64, and the share of it that rounding the mean may decide.

    Where the call rounds the mean to the input's dtype, a mean beside a tie may go to either neighbour.
    """
    x = a["x"].double()
    mean = x.abs().mean(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    doubt = torch.zeros_like(mean)
    if a.get("mean_dtype") == "input":
        low, mean, high = (((1 + side * 2.0**-20) * mean).to(a["x"].dtype).double() for side in (-1, 0, 1))
        doubt = torch.where(low == high, 0.0, 2 * UNIT_ROUNDOFF[a["x"].dtype])
    return (mean / a["k"]).clamp(a.get("vth_min", 1e-5), a.get("vth_max", 1e4)), doubt


def _sum_roundings(x: Tensor) -> float:
    """How many roundings a fair sum of a row may leave."""
    return 8.0 + math.sqrt(x.shape[-1])


def _is_exact(a: Mapping[str, Any], threshold: Tensor) -> Tensor:
    """Rows whose threshold no order of rounding can move, so that their ties are ties for every kernel."""
    x = a["x"].double()
    if not _power_of_two(x.new_tensor(x.shape[-1] * a["k"])):
        return torch.zeros_like(threshold, dtype=torch.bool)
    halves = ((2 * x).round() == 2 * x) & (x.abs() < 2**10)
    exact: Tensor = halves.all(-1, keepdim=True) & _power_of_two(threshold)
    return exact


def _power_of_two(t: Tensor) -> Tensor:
    return torch.frexp(t).mantissa.eq(0.5)


@_replays("spike_encode")
def _replay_counts(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """Counts are judged under the threshold that was returned with them."""
    a = spec.bind(args)
    ratio = a["x"].double() / outputs["v_threshold"].double()
    slack = _slack(ratio, 2)
    threshold, doubt = _row_threshold(a)
    return Truth(
        expected={"counts": _count(ratio), "v_threshold": threshold},
        base=dict(zip(spec.outputs, spec.reference(*args), strict=True)),
        magnitude={},
        allowed={"v_threshold": threshold * (doubt + _sum_roundings(a["x"]) * WORKING_ROUNDOFF)},
        floor={"counts": _count(ratio - slack)},
        ceiling={"counts": _count(ratio + slack)},
    )


@_replays("spike_quantize")
def _replay_levels(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """The level that an activation was rounded to is read off the result; its value is then held to rounding."""
    truth = reference_truth(spec, args)
    a = spec.bind(args)
    threshold, _ = _row_threshold(a)
    ratio = a["x"].double() / threshold
    slack = torch.where(_is_exact(a, threshold), 0.0, _slack(ratio, 8))
    given = outputs["y"].double() / threshold
    level = given.round().clamp(_count(ratio - slack), _count(ratio + slack))
    expected = level * threshold
    roundings = UNIT_ROUNDOFF[a["x"].dtype] + _sum_roundings(a["x"]) * WORKING_ROUNDOFF
    allowed = expected.abs() * roundings + SMALLEST[a["x"].dtype]
    return Truth({"y": expected}, truth.base, truth.magnitude, allowed={"y": allowed})
