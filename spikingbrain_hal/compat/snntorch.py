"""snnTorch's Leaky neurons over a whole sequence, on :func:`~spikingbrain_hal.ops.lif_scan`.

snnTorch is called once a time step. Where a layer's inputs are known for all steps, the loop ::

    for x_t in x:
        spikes, membrane = leaky(x_t, membrane)

is ``spikes, membrane = run(leaky, x)``: the same spikes but where a potential lies within rounding of the threshold,
the same gradients, the same ``leaky.mem`` afterwards, so that single steps may follow. What ``lif_scan`` would not
compute identically runs as that loop; :func:`explain` says why. One difference is meant: far below the threshold
(3.6 in float32 at the usual slope) the derivative of snnTorch's ``sigmoid`` overflows to NaN, and here it is 0. Written
for snnTorch 0.9 and 1.0.

Source: Eshraghian et al. 2023, arXiv:2109.12894, eqs. 1-4.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..ops.neurons.lif_scan import lif_scan

DTYPES = (torch.float32, torch.float64)
RESETS = {"_base_sub": "soft", "_base_zero": "hard", "_base_int": "none"}

# The name in lif_scan, and which of the function's own variables is alpha there.
SURROGATES: dict[str, tuple[str, str | None]] = {
    "atan": ("atan", "alpha"),
    "fast_sigmoid": ("fast_sigmoid", "slope"),
    "sigmoid": ("sigmoid", "slope"),
    "straight_through_estimator": ("straight_through", None),
}


def run(leaky: Any, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Runs a ``snntorch.Leaky`` over all time steps.

    Args:
        leaky: The neurons, ``snntorch.Leaky``. Their ``mem`` is left as the last step leaves it.
        x: Input currents, [T, ...] with T at least 1, float32 or float64; other dtypes run step by step.
        mem: Membrane potentials before the first step, [...]; ``leaky.mem`` if absent, which is zero at first.

    Returns:
        What the steps return, stacked: spikes, [T, ...], and membrane potentials, [T, ...], dtype of x (spikes are
        float32 for float64 inputs, as snnTorch's are). With a delayed reset potentials are those before it.

    Raises:
        ModuleNotFoundError: snnTorch is not installed.
        TypeError: leaky is no ``snntorch.Leaky``, or mem is given to one with ``init_hidden=True``.
        ValueError: x has no time steps.
    """
    _require_leaky(leaky)
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"run: x has shape {list(x.shape)}, expected at least one time step, [T, ...]")
    if mem is not None and leaky.init_hidden:
        raise TypeError("run: mem is given, but a neuron with init_hidden=True keeps its own")
    start = leaky.mem if mem is None else mem
    if start.shape != x.shape[1:]:
        start = torch.zeros_like(x[0])
    settings = _settings(leaky, x.dtype, start.dtype)
    if not isinstance(settings, str):
        spikes, last, membrane = _scan(leaky, settings, x, start)
        if not _resets_twice(leaky, settings, start, membrane):
            leaky.mem = last
            return spikes, membrane
    return _loop(leaky, x, mem)


def explain(leaky: Any, dtype: torch.dtype = torch.float32) -> str:
    """Says what :func:`run` does with a neuron.

    Args:
        leaky: The neurons, ``snntorch.Leaky``.
        dtype: Dtype of its inputs and potentials.

    Returns:
        ``"lif_scan"``, or ``"snntorch: "`` and the reason. ``reset_delay=False`` also runs as a loop where a potential
        stays above the threshold after its reset, which is seen only on running.

    Raises:
        ModuleNotFoundError: snnTorch is not installed.
        TypeError: leaky is no ``snntorch.Leaky``.
    """
    _require_leaky(leaky)
    settings = _settings(leaky, dtype, dtype)
    return f"snntorch: {settings}" if isinstance(settings, str) else "lif_scan"


def _require_leaky(leaky: Any) -> None:
    try:
        library = import_module("snntorch")
    except ModuleNotFoundError as error:
        if error.name != "snntorch":
            raise
        raise ModuleNotFoundError(
            "spikingbrain_hal.compat.snntorch needs snntorch: pip install snntorch", name=error.name
        ) from None
    if not isinstance(leaky, library.Leaky):
        raise TypeError(f"run: leaky is a {type(leaky).__name__}, expected a snntorch.Leaky")


def _settings(leaky: Any, dtype: torch.dtype, state: torch.dtype) -> dict[str, Any] | str:
    """What lif_scan is to be given, or why it must not run."""
    if type(leaky).__name__ != "Leaky" or not type(leaky).__module__.startswith("snntorch."):
        return f"{type(leaky).__name__} is derived from Leaky and may step otherwise"
    if leaky._forward_hooks or leaky._forward_pre_hooks:
        return "its hooks are to be called at every step"
    if leaky.inhibition:
        return "inhibition lets neurons depend on one another"
    if leaky.state_quant:
        return "state_quant rounds the potential at every step"
    if dtype not in DTYPES:
        return f"inputs are {dtype}, and its potential is rounded to that at every step, where lif_scan's is float32"
    if state != dtype:
        return f"inputs are {dtype} and the potential is {state}"
    for name in ("beta", "threshold"):
        value = getattr(leaky, name)
        if value.dim() and torch.promote_types(value.dtype, dtype) != dtype:
            return f"inputs are {dtype} and {name} is {value.dtype}, to which it turns the potential"
    surrogate = _surrogate(leaky)
    if isinstance(surrogate, str):
        return surrogate
    # What a step does was chosen when the neuron was made; a later reset_mechanism governs the undelayed reset alone.
    reset = RESETS[leaky.state_function.__name__]
    if not leaky.reset_delay and reset != list(RESETS.values())[int(leaky.reset_mechanism_val)]:
        return "reset_mechanism was changed after the neuron was made"
    return {
        "input_gain": 1.0,
        "reset": reset,
        "reset_next_step": leaky.reset_delay,
        "detach_reset": leaky.reset_delay or leaky.surrogate_disable,
        "strict": True,
        **surrogate,
    }


def _surrogate(leaky: Any) -> dict[str, Any] | str:
    if leaky.surrogate_disable:
        return {}
    function = leaky.spike_grad
    name = getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]
    if getattr(function, "__module__", None) != "snntorch.surrogate" or name not in SURROGATES:
        return f"lif_scan has no surrogate derivative of {getattr(function, '__module__', None)}.{name}"
    ours, variable = SURROGATES[name]
    if variable is None:
        return {"surrogate": ours}
    value = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))[variable].cell_contents
    if not isinstance(value, (int, float)) or value <= 0:
        return f"lif_scan takes no {name} with {variable}={value!r}"
    return {"surrogate": ours, "alpha": value}


def _scan(leaky: Any, settings: dict[str, Any], x: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    learned = {"decay": leaky.beta.clamp(0, 1), "v_threshold": leaky.threshold}
    spikes, last, membrane = lif_scan(x, start, **learned, **settings, return_v=True)
    spikes = spikes.float()
    return (spikes.detach() if leaky.surrogate_disable else spikes) * leaky.graded_spikes_factor, last, membrane


def _resets_twice(leaky: Any, settings: dict[str, Any], start: Tensor, membrane: Tensor) -> bool:
    """An undelayed reset that leaves a potential above the threshold acts again before the next decision."""
    if leaky.reset_delay or settings["reset"] == "none":
        return False
    before = torch.cat((start[None], membrane[:-1])).detach()
    return bool((before > leaky.threshold).any())


def _loop(leaky: Any, x: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
    """The steps one by one, as snnTorch's user writes them."""
    rows = []
    for x_t in x:
        out = leaky(x_t) if mem is None else leaky(x_t, mem)
        spikes, mem = (out[0], None) if isinstance(out, tuple) else (out, None)
        rows.append((spikes, leaky.mem))
    spikes, membrane = (torch.stack(column) for column in zip(*rows, strict=True))
    return spikes, membrane
