"""Properties of lif_scan: a decision is judged on the path that the earlier decisions led to.

Comparing spikes with an independent run says nothing: one that falls to the other side of a threshold by rounding
changes everything after it. So the float64 membrane is driven with the spikes under test, and each may differ from
the exact decision only where the potential is as close to the threshold as rounding reaches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import Case, OpSpec
from ...ops.neurons.lif_scan import SPEC
from ...ops.neurons.surrogates import SURROGATES
from ..verdict.judge import WORKING_ROUNDOFF
from ..verdict.oracle import reference_truth
from ..verdict.truth import Named, Truth, in_float64, named_results
from . import ClosedForm, Pair, Properties, Relation, Values, register
from ._shared import ones, times

MARGIN = 6.0


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


def _drive_membrane(a: Values, spikes: Tensor) -> Membrane:
    """Runs the membrane with given spikes; ``a`` holds the arguments of lif_scan, floats in float64."""
    states = _reference(a, spikes, return_v=True)["v"]
    x, rest = a["x"], a["v_rest"]
    start = x.new_full(x.shape[1:], rest) if a["v0"] is None else a["v0"].expand(x.shape[1:])
    before = torch.cat([start[None], states])[:-1] if len(x) else states
    leak = a["decay"] if a["decay_tensor"] is None else a["decay_tensor"]
    threshold = x.new_tensor(a["v_threshold"]) if a["v_threshold_tensor"] is None else a["v_threshold_tensor"]
    taken = torch.zeros_like(spikes)
    if a["reset_next_step"]:
        taken = torch.cat([_decide(a, start, threshold)[None], spikes])[:-1] if len(x) else spikes
        if a["reset"] == "hard":
            before = torch.where(taken > 0, a["v_reset"], before)
    charged = rest + leak * (before - rest) + a["input_gain"] * x
    left = charged - (taken if a["reset_next_step"] else spikes) * _soft(a, threshold)
    terms = (leak * before).abs() + (a["input_gain"] * x).abs() + charged.abs() + _extra(a, threshold)
    return Membrane(left if a["reset_next_step"] else charged, left, _margins(a, spikes, leak, terms), threshold)


def _margins(a: Values, spikes: Tensor, leak: Tensor | float, terms: Tensor) -> Tensor:
    """The error of a step is what the last one left, decayed, and its own rounding; a hard reset forgets it."""
    margins, error = torch.empty_like(terms), terms.new_zeros(terms.shape[1:])
    for t in range(len(terms)):
        error = ((leak * error).square() + (WORKING_ROUNDOFF * terms[t]).square()).sqrt()
        margins[t] = MARGIN * error
        if a["reset"] == "hard":
            error = torch.where(spikes[t] > 0, 0.0, error)
    return margins


def _soft(a: Values, threshold: Tensor) -> Tensor:
    return threshold if a["reset"] == "soft" else torch.zeros_like(threshold)


def _extra(a: Values, threshold: Tensor) -> Tensor:
    """Terms beside decay and input that rounding is in proportion to: attributes, and what a soft reset subtracts."""
    at_rest: float = abs(a["v_rest"]) + abs(a["v_reset"]) + (abs(a["v_min"]) if a["v_min"] > -torch.inf else 0.0)
    most: int = a["max_count"]
    return _soft(a, threshold).abs() * most + at_rest


def _reference(a: Values, spikes: Tensor | None, **changed: Any) -> Named:
    values = {**a, **changed}
    results = SPEC.reference(*(values[name] for name in SPEC.arguments), spikes=spikes)
    return dict(zip(SPEC.outputs, results, strict=True))


def _decide(a: Values, potential: Tensor, threshold: Tensor) -> Tensor:
    """The spikes that a potential gives; never fewer where the potential is higher."""
    if a["max_count"] == 1:
        return (potential > threshold if a["strict"] else potential >= threshold).double()
    ratio = potential / threshold
    rounded = ratio.floor() if a["count_rounding"] == "floor" else ratio.round()
    return torch.nan_to_num(rounded, nan=0.0).clamp(0, a["max_count"])


def _magnitudes(a: Values, extra: Tensor) -> Named:
    """The membrane of absolute values that no spike lowers."""
    absolute = {n: t.abs() if isinstance(t, Tensor) else t for n, t in a.items()}
    quiet = {"reset": "none", "v_rest": abs(a["v_rest"]), "input_gain": abs(a["input_gain"]), "v_min": -torch.inf}
    if a["decay_tensor"] is None and not 0 <= a["decay"] <= 1:  # rest and membrane cancel, or what is added grows
        leak = abs(a["decay"])
        quiet |= {"decay": leak, "v_rest": 0.0, "input_gain": 1.0}
        absolute["x"] = abs(a["input_gain"]) * absolute["x"] + (1 + leak) * extra
    return _reference(absolute, torch.zeros_like(a["x"]), **quiet)


def _replay_spikes(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    narrow = spec.bind(args)
    a = spec.bind(in_float64(spec, args))
    spikes = outputs["spikes"].detach()
    membrane = _drive_membrane(a, spikes.double())
    expected = _reference(a, spikes.double())
    exact = _decide(a, membrane.potential, membrane.threshold)
    first, last = (_decide(a, membrane.potential + side * membrane.margin, membrane.threshold) for side in (-1, 1))
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


def _jumps(a: Values, membrane: Membrane) -> list[tuple[Tensor, Tensor]]:
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


def _replay_gradients(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """Neurons whose potential comes within rounding of a jump at any step are left out, and counted."""
    truth = reference_truth(spec, args)
    a = spec.bind(in_float64(spec, args))
    membrane = _drive_membrane(a, a["spikes"])
    near = torch.zeros_like(membrane.potential, dtype=torch.bool)
    for distance, slack in _jumps(a, membrane):
        near |= distance <= slack
    neurons = near.any(0)
    excluded = {name: neurons.expand(t.shape) for name, t in outputs.items() if t.numel() and bool(neurons.any())}
    return Truth(truth.expected, truth.base, truth.magnitude, excluded=excluded)


# ---- relations and settings


def _every_potential_doubled(a: Values) -> Pair:
    potentials = ("x", "v0", "v_threshold_tensor", "v_threshold", "v_rest", "v_reset", "v_min")
    return Pair(times(2.0, a, *potentials), factors={"v_final": 0.5, "v": 0.5})


def _numbers_given_as_tensors(a: Values) -> Pair:
    neurons = torch.ones(a["x"].shape[1:], device=a["x"].device)
    numbers = {"decay_tensor": a["decay"] * neurons, "v_threshold_tensor": a["v_threshold"] * neurons}
    return Pair(numbers, exact=False)


def _only_integrates(a: Values) -> dict[str, Any]:
    """Settings under which nothing leaks and nothing is reset."""
    resets = {"reset": "none", "reset_next_step": False, "v_min": -torch.inf}
    return {"decay": 1.0, "decay_tensor": None, "v_rest": 0.0} | resets


def _integral(a: Values) -> Named:
    start = 0.0 if a["v0"] is None else a["v0"]
    v = start + a["input_gain"] * a["x"].cumsum(0)
    return {"v_final": v[-1]} | ({"v": v} if a["return_v"] else {})


def _large_start(a: Values, first: float) -> Values:
    start = torch.full(a["x"].shape[1:], first, device=a["x"].device)
    silent = {"v_threshold": 2.0**30, "v_threshold_tensor": None, "max_count": 1}
    return _only_integrates(a) | silent | ones(a, "x") | {"input_gain": 1.0, "v0": start}


# ---- infinite and NaN potentials

STEPS, NEURONS = 4, 16


def _special_currents(device: str) -> Tensor:
    """On a grid, one neuron in three all finite; in the others an infinity or NaN comes first, late, last, or both."""
    steps, neurons = torch.arange(STEPS)[:, None], torch.arange(NEURONS)
    currents = ((7 * steps + 3 * neurons) % 11 - 4) / 4.0
    special = (math.inf, -math.inf, math.nan)
    for neuron in range(10):
        currents[neuron // 3, neuron] = special[neuron % 3]
    currents[0, 10], currents[2, 10] = math.inf, -math.inf
    return currents.to(device)


def _nonfinite(device: str, surrogate: str = "sigmoid") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every reset, at once or delayed, of spikes and of counts, with and without a floor."""
    x = _special_currents(device)
    ones = torch.ones(NEURONS, device=x.device)
    numbers = {"decay": 0.5, "input_gain": 1.0, "v_rest": 0.0625, "v_threshold": 1.0, "v_reset": 0.125, "strict": False}
    shapes = {"surrogate": surrogate, "alpha": 1.5, "beta": 0.125, "count_rounding": "floor", "return_v": True}
    tensors = {"x": x, "v0": 0 * ones, "decay_tensor": ones / 2, "v_threshold_tensor": ones}
    settings = itertools.product(("none", "soft", "hard"), (False, True), (False, True), (1, 4), (-math.inf, -0.5))
    names = ("reset", "reset_next_step", "detach_reset", "max_count", "v_min")
    for values in settings:
        chosen = dict(zip(names, values, strict=True))
        yield ", ".join(f"{n}={v}" for n, v in chosen.items()), tensors | numbers | shapes | chosen


def _nonfinite_gradients(device: str, surrogate: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same with what the backward is given beside: the forward's spikes, and gradients that are no zeros."""
    for what, a in _nonfinite(device, surrogate):
        forward = named_results(SPEC, SPEC.reference, [a[n] for n in SPEC.arguments])
        given = {f"grad_{n}": torch.full_like(t, 0.75) for n, t in forward.items()}
        yield what, a | given | {"spikes": forward["spikes"]}


NUMBERS = Relation(_numbers_given_as_tensors, shows=lambda a: not a["decay_tensor"] and not a["v_threshold_tensor"])

register(
    "lif_scan",
    # its neurons are not called independent: a vector's lanes and its tail may round differently
    Properties(
        magnitude=("x", "v0"),
        replay=_replay_spikes,
        relations={
            "every_potential_doubled": Relation(_every_potential_doubled),
            "numbers_given_as_tensors": NUMBERS,
        },
        closed_forms={"perfect_integrator": ClosedForm(_only_integrates, _integral)},
        one_large_term=_large_start,
        proportional={"v_final": ("x", "v0"), "v": ("x", "v0")},
        nonfinite={"potentials": _nonfinite},
        huge=Case({"T": 4, "...": (1 << 14,)}, dict(return_v=False)),
        # a floor of the potential above the threshold fires by itself, which a delayed reset cannot tell from a spike
        choices={"v_min": (-torch.inf, -1.0)},
    ),
    backward=Properties(
        replay=_replay_gradients,
        nonfinite={name: partial(_nonfinite_gradients, surrogate=name) for name in SURROGATES},
        relations={"numbers_given_as_tensors": NUMBERS},
        # a surrogate is no derivative of anything: with the spikes held, what remains is one
        smooth={"detach_reset": True, "grad_spikes": None},
    ),
)
