"""Leaky integrate-and-fire neurons over time: one scan that the neurons of the known libraries are settings of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.rules import finite, in_range, one_of
from ...declare.spec import Case, Input, Output, Time
from .surrogates import SURROGATES, with_slope

UNDERFLOWS = 2.0**-150  # what float32 rounds to 0


def reference(
    x: Tensor,
    v0: Tensor | None,
    decay_tensor: Tensor | None,
    v_threshold_tensor: Tensor | None,
    decay: float = 0.5,
    input_gain: float = 0.5,
    v_rest: float = 0.0,
    v_threshold: float = 1.0,
    reset: str = "hard",
    v_reset: float = 0.0,
    reset_next_step: bool = False,
    detach_reset: bool = False,
    strict: bool = False,
    max_count: int = 1,
    count_rounding: str = "floor",
    v_min: float = -math.inf,
    surrogate: str = "sigmoid",
    alpha: float = 4.0,
    beta: float = 0.0,
    return_v: bool = True,
    *,
    spikes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes given as a keyword replace the decisions: for a backward, or to replay those of another kernel."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    leak = decay if decay_tensor is None else decay_tensor.to(acc)
    threshold = v_threshold if v_threshold_tensor is None else v_threshold_tensor.to(acc)

    def fire(h: Tensor, given: Tensor | None) -> Tensor:
        """The spikes of potential h; their value is exact, their derivative the surrogate's."""
        if max_count == 1:
            decided = (h > threshold) if strict else (h >= threshold)
            u, unit = h - threshold, threshold
        else:
            rounded = (h / threshold).floor() if count_rounding == "floor" else (h / threshold).round()
            decided = torch.nan_to_num(rounded, nan=0.0).clamp(0, max_count)
            u, unit = h / threshold - 1, 1.0
        value = (decided if given is None else given).to(acc)
        slope = SURROGATES[surrogate](u, unit, alpha, beta, max_count)
        return with_slope(value.detach(), u, slope.detach())

    def after_reset(h: Tensor, s: Tensor) -> Tensor:
        """What a spike leaves of h (soft reset acts on the sum instead when it is delayed)."""
        if reset == "none":
            return h
        if reset == "soft":
            return h - (s.detach() if detach_reset else s) * threshold
        left = torch.where(s.detach() > 0, v_reset, h)
        return left if detach_reset else with_slope(left, s, (v_reset - h).detach())

    def floor(v: Tensor) -> Tensor:
        return v if v_min == -math.inf else torch.where(v <= v_min, v_min, v)

    v = x.new_full(x.shape[1:], v_rest, dtype=acc) if v0 is None else v0.to(acc)
    out, trace = [], []
    for t in range(x.shape[0]):
        given = None if spikes is None else spikes[t]
        drive = input_gain * x[t].to(acc)
        if reset_next_step:
            previous = fire(v, None if spikes is None or t == 0 else spikes[t - 1])
            if reset == "soft":
                h = after_reset(v_rest + leak * (v - v_rest) + drive, previous)
            else:
                h = v_rest + leak * (after_reset(v, previous) - v_rest) + drive
            s = fire(h, given)
            v = floor(h)
        else:
            h = v_rest + leak * (v - v_rest) + drive
            s = fire(h, given)
            v = floor(after_reset(h, s))
        out.append(s)
        trace.append(v)
    none = x.new_zeros(0, *x.shape[1:], dtype=acc)
    all_spikes = torch.stack(out) if out else none
    all_v = (torch.stack(trace) if trace else none) if return_v else x.new_zeros(0, dtype=torch.float32)
    return all_spikes.to(x.dtype), v.clone(), all_v


def _counts(a: Mapping[str, Any]) -> str | None:
    if a["max_count"] == 1 or a["v_threshold_tensor"] is not None or a["v_threshold"] > UNDERFLOWS:
        return None
    return f"v_threshold is {a['v_threshold']}, expected a positive number with max_count above 1"


def _case(shape: tuple[int, ...], steps: int, given: tuple[str, ...] = (), **attrs: Any) -> Case:
    return Case({"T": steps, "...": shape}, attrs, given)


SPEC = operator(
    "lif_scan",
    reference=reference,
    inputs={
        "x": Input("T ...", fill="current", doc="input current"),
        "v0": Input("...", doc="potential before the first step"),
        "decay_tensor": Input("...", fill="unit", doc="decay of each neuron"),
        "v_threshold_tensor": Input("...", fill="threshold", doc="threshold of each neuron"),
    },
    outputs={
        "spikes": Output("T ...", "x"),
        "v_final": Output("...", "acc"),
        "v": Output("T ...", "acc", when="return_v"),
    },
    rules=(
        one_of("reset", "hard", "soft", "none"),
        one_of("count_rounding", "floor", "half_even"),
        one_of("surrogate", *SURROGATES),
        in_range("max_count", 1, 256, "a count from 1 to 256, exact in every dtype of x"),
        in_range("alpha", 1e-30, text="a positive number"),
        finite("decay", "input_gain", "v_rest", "v_threshold", "v_reset", "alpha", "beta"),
        lambda a: None if a["v_min"] == -math.inf else finite("v_min")(a),
        _counts,
    ),
    differentiable=("x", "v0", "decay_tensor", "v_threshold_tensor"),
    saved=("spikes",),
    time=Time("T", state_in="v0", state_out="v_final"),
    cases=(
        _case((3, 37), 16, ("v0",)),
        _case((130,), 5, reset="soft"),
        _case((4, 3, 5), 9, ("v0",), reset="none", detach_reset=True),
        _case((65,), 12, ("v0",), reset="soft", detach_reset=True, surrogate="atan", alpha=2.0),
        _case((33,), 8, ("decay_tensor", "v_threshold_tensor"), surrogate="triangle", alpha=1.0),
        _case((2, 19), 11, ("v0", "decay_tensor"), reset="soft", v_rest=0.1, input_gain=1.0),
        _case((50,), 10, ("v0",), v_reset=-0.2, v_min=-0.5, surrogate="erf", alpha=2.0),
        _case((50,), 10, v_reset=-0.2, v_min=-0.1),
        _case((50,), 10, ("v0",), reset="soft", reset_next_step=True, strict=True, decay=0.9, input_gain=1.0),
        _case((41,), 7, ("v0",), reset="hard", reset_next_step=True, surrogate="fast_sigmoid"),
        _case((64,), 9, ("v0",), reset="soft", max_count=4, surrogate="rect_count", input_gain=2.0),
        _case((300,), 6, reset="soft", max_count=4, count_rounding="half_even", surrogate="rect_count"),
        _case((29,), 6, reset="soft", max_count=8, surrogate="periodic_exponential", input_gain=3.0),
        *(
            _case((17,), 6, surrogate=name, alpha=1.0, beta=0.01)
            for name in ("superspike", "softsign", "exponential", "rect", "piecewise_linear", "leaky_relu")
        ),
        _case((17,), 6, ("v_threshold_tensor",), surrogate="straight_through", reset="soft"),
        _case((70,), 4, return_v=False),
        _case((), 5),
        _case((9,), 0, ("v0",)),
        _case((0,), 3),
    ),
    bench=(_case((2_000_000,), 16, return_v=False),),
    flops=lambda a: 6.0 * a["x"].numel(),
    source="Fang et al. 2021, arXiv:2007.05785, eqs. 1-3; Neftci et al. 2019, arXiv:1901.09948 (surrogates)",
)


def _spread(name: str, value: float | Tensor | None, x: Tensor) -> Tensor | None:
    if not isinstance(value, Tensor) or not isinstance(x, Tensor):
        return None
    try:
        return value.expand(x.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"lif_scan: {name} has shape {list(value.shape)}, expected one that broadcasts to "
            f"{list(x.shape[1:])}, the shape of x without time"
        ) from None


@overload
def lif_scan(
    x: Tensor,
    v0: Tensor | None = None,
    decay: float | Tensor = 0.5,
    input_gain: float = 0.5,
    v_rest: float = 0.0,
    v_threshold: float | Tensor = 1.0,
    reset: str = "hard",
    v_reset: float = 0.0,
    reset_next_step: bool = False,
    detach_reset: bool = False,
    strict: bool = False,
    max_count: int = 1,
    count_rounding: str = "floor",
    v_min: float | None = None,
    surrogate: str = "sigmoid",
    alpha: float = 4.0,
    beta: float = 0.0,
    return_v: Literal[False] = False,
) -> tuple[Tensor, Tensor]: ...


@overload
def lif_scan(
    x: Tensor,
    v0: Tensor | None = None,
    decay: float | Tensor = 0.5,
    input_gain: float = 0.5,
    v_rest: float = 0.0,
    v_threshold: float | Tensor = 1.0,
    reset: str = "hard",
    v_reset: float = 0.0,
    reset_next_step: bool = False,
    detach_reset: bool = False,
    strict: bool = False,
    max_count: int = 1,
    count_rounding: str = "floor",
    v_min: float | None = None,
    surrogate: str = "sigmoid",
    alpha: float = 4.0,
    beta: float = 0.0,
    *,
    return_v: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...


def lif_scan(
    x: Tensor,
    v0: Tensor | None = None,
    decay: float | Tensor = 0.5,
    input_gain: float = 0.5,
    v_rest: float = 0.0,
    v_threshold: float | Tensor = 1.0,
    reset: str = "hard",
    v_reset: float = 0.0,
    reset_next_step: bool = False,
    detach_reset: bool = False,
    strict: bool = False,
    max_count: int = 1,
    count_rounding: str = "floor",
    v_min: float | None = None,
    surrogate: str = "sigmoid",
    alpha: float = 4.0,
    beta: float = 0.0,
    return_v: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Run leaky integrate-and-fire neurons over time.

    Each step charges ``h = v_rest + decay * (v - v_rest) + input_gain * x_t``, fires where ``h >= v_threshold`` and
    resets: hard to ``v_reset``, soft by subtracting ``spikes * v_threshold``, or not. Potentials are dimensionless and
    float32 (float64 for float64 inputs). NaN never fires and stays NaN, also at a floor. The derivative of the spikes
    is the surrogate's formula at every potential: its limit at an infinite one, NaN at NaN where the formula computes
    with it, and what its comparisons choose where it does not.

    Args:
        x: Input current, [T, ...], float32, bfloat16 or float16.
        v0: Potential before the first step, broadcast to x without time, any float dtype; v_rest if absent.
        decay: Share of the potential kept in a step, a number or a tensor broadcast to x without time (learnable).
        input_gain: Factor on x.
        v_rest: Potential that decay leads to.
        v_threshold: A number or a tensor broadcast to x without time (learnable).
        reset: ``"hard"``, ``"soft"`` or ``"none"``.
        v_reset: Potential after a hard reset.
        reset_next_step: Hand on and report the potential before its reset, which the next step applies: a hard one to
            the potential before it decays, a soft one to the sum after it.
        detach_reset: No gradient through the reset.
        strict: Fire where ``h > v_threshold``; for single spikes only.
        max_count: Largest spike count of a step; above 1 a step emits ``h / v_threshold`` rounded and clipped to
            [0, max_count].
        count_rounding: ``"floor"`` or ``"half_even"``.
        v_min: Floor of the potential, applied last; none if absent.
        surrogate: The spike's derivative, a name in :data:`spikingbrain_hal.ops.neurons.surrogates.SURROGATES`.
        alpha: Its width or height.
        beta: Its second parameter where it has one.
        return_v: Also return the potential after every step.

    Returns:
        spikes, [T, ...], dtype of x; v_final, [...], float32; and with return_v v, [T, ...], float32.

    Raises:
        ValueError: A shape does not broadcast, a name is unknown, or a number is out of range.
        TypeError: A dtype is not accepted.

    Source: Fang et al. 2021, arXiv:2007.05785, eqs. 1-3; Neftci et al. 2019, arXiv:1901.09948 (surrogates).
    """
    if v0 is not None and not isinstance(v0, Tensor):
        raise TypeError(f"lif_scan: v0 is {type(v0).__name__}, expected a tensor or None")
    learned = (_spread("v0", v0, x), _spread("decay", decay, x), _spread("v_threshold", v_threshold, x))
    leak = 0.0 if isinstance(decay, Tensor) else decay
    threshold = 1.0 if isinstance(v_threshold, Tensor) else v_threshold
    resets = (reset, v_reset, reset_next_step, detach_reset, strict, max_count, count_rounding)
    floor = -math.inf if v_min is None else v_min
    settings = (leak, input_gain, v_rest, threshold, *resets, floor, surrogate, alpha, beta, return_v)
    spikes, v_final, v = call(SPEC, x, *learned, *settings)
    return (spikes, v_final, v) if return_v else (spikes, v_final)
