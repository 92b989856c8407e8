"""SpikingJelly's IF, LIF and parametric LIF nodes on :func:`~spikingbrain_hal.ops.lif_scan`.

Within :func:`accelerated`, or after :func:`accelerate`, every ``IFNode``, ``LIFNode`` and ``ParametricLIFNode`` that is
called with ``step_mode="m"`` runs its time steps in one operator. Nothing in a model changes: its classes, parameters,
saved states and the nodes' ``v``, ``v_seq``, ``reset()`` and settings stay SpikingJelly's. Spikes are equal but where a
potential lies within rounding of the threshold, and so are first derivatives; second ones raise NotImplementedError.

A call that ``lif_scan`` would not compute identically stays with SpikingJelly's own code; :func:`explain` says which
and why. Written for SpikingJelly 0.0.0.0.14 and 2.0.

Source: Fang et al. 2023, arXiv:2310.16620.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.neurons.lif_scan import lif_scan

NODES = ("IFNode", "LIFNode", "ParametricLIFNode")
PATCHED = ("multi_step_forward", "multi_step_functional_forward")
DTYPES = (torch.float32, torch.float64)

# The name in lif_scan, and which of the object's attributes are alpha and beta there.
SURROGATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Sigmoid": ("sigmoid", ("alpha",)),
    "ATan": ("atan", ("alpha",)),
    "PiecewiseQuadratic": ("triangle", ("alpha",)),
    "PiecewiseExp": ("exponential", ("alpha",)),
    "SoftSign": ("softsign", ("alpha",)),
    "SuperSpike": ("superspike", ("alpha",)),
    "Erf": ("erf", ("alpha",)),
    "Rect": ("rect", ("alpha",)),
    "PiecewiseLeakyReLU": ("piecewise_linear", ("w", "c")),
    "LeakyKReLU": ("leaky_relu", ("k", "leak")),
    "DeterministicPass": ("straight_through", ()),
}

_originals: dict[tuple[Any, str], Callable[..., Any]] = {}


def accelerate() -> None:
    """Makes multi-step IF, LIF and parametric LIF nodes run on ``lif_scan``, all over this process, until restore.

    Raises:
        ModuleNotFoundError: SpikingJelly is not installed.
    """
    for node_type in _node_types():
        for name, patch in zip(PATCHED, (_stateful, _functional), strict=True):
            # Version 0.0.0.0.14 has no functional form, and a node type may inherit a method of another.
            if name in vars(node_type) and (node_type, name) not in _originals:
                _originals[node_type, name] = getattr(node_type, name)
                setattr(node_type, name, patch(_originals[node_type, name]))


def restore() -> None:
    """Gives the nodes SpikingJelly's own code back."""
    while _originals:
        (node_type, name), original = _originals.popitem()
        setattr(node_type, name, original)


@contextmanager
def accelerated() -> Iterator[None]:
    """As :func:`accelerate`, for the duration of a ``with`` block, in every thread of the process.

    Raises:
        ModuleNotFoundError: SpikingJelly is not installed.
    """
    outermost = not _originals
    accelerate()
    try:
        yield
    finally:
        if outermost:
            restore()


def explain(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Says for each of a model's nodes what runs its time steps while nodes are accelerated.

    Args:
        model: The model, or one node.
        dtype: Dtype of the nodes' inputs.

    Returns:
        By the node's name in the model: ``"lif_scan"``, or ``"spikingjelly: "`` and the reason.

    Raises:
        ModuleNotFoundError: SpikingJelly is not installed.
    """
    base = _import("base").MemoryModule
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, base):
            settings = _settings(module, dtype)
            found[name] = f"spikingjelly: {settings}" if isinstance(settings, str) else "lif_scan"
    return found


def _import(name: str) -> Any:
    try:
        import_module("spikingjelly")
    except ModuleNotFoundError as error:
        if error.name != "spikingjelly":
            raise
        raise ModuleNotFoundError(
            "spikingbrain_hal.compat.spikingjelly needs spikingjelly: pip install spikingjelly", name=error.name
        ) from None
    return import_module(f"spikingjelly.activation_based.{name}")


def _node_types() -> list[Any]:
    neuron = _import("neuron")
    return [getattr(neuron, name) for name in NODES]


def _settings(node: Any, dtype: torch.dtype) -> dict[str, Any] | str:
    """What lif_scan is to be given for a node's calls, or why it must not run them."""
    kind = type(node)
    if kind.__name__ not in NODES or not kind.__module__.startswith("spikingjelly.activation_based.neuron"):
        return f"{kind.__name__} is none of {', '.join(NODES)}; a class derived from one may charge or reset otherwise"
    if node.step_mode != "m":
        return f"step_mode is {node.step_mode!r}, one step at a time"
    if getattr(node, "backend", "torch") != "torch":
        return f"backend is {node.backend!r}, chosen by name"
    if getattr(node, "_neuron_precision", None) is not None:
        return "the node has a precision of its own"
    if dtype not in DTYPES:
        return f"inputs are {dtype}, and its potential is rounded to that at every step, where lif_scan's is float32"
    numbers = ("v_threshold", "tau") if kind.__name__ == "LIFNode" else ("v_threshold",)
    for name in numbers:
        if not isinstance(getattr(node, name), (int, float)):
            return f"{name} is a {type(getattr(node, name)).__name__}, not a number"
    surrogate = _surrogate(node.surrogate_function)
    if isinstance(surrogate, str):
        return surrogate
    rest = node.v_reset or 0.0
    settings = {
        "v_rest": rest,
        "v_threshold": node.v_threshold,
        "reset": "soft" if node.v_reset is None else "hard",
        "v_reset": rest,
        "detach_reset": node.detach_reset,
        **surrogate,
    }
    if kind.__name__ == "LIFNode":
        if node.tau <= 1:
            return f"tau is {node.tau}, not above 1"
        return settings | {"decay": 1 - 1 / node.tau, "input_gain": 1 / node.tau if node.decay_input else 1.0}
    return settings | {"decay": 1.0, "input_gain": 1.0}


def _surrogate(function: Any) -> dict[str, Any] | str:
    kind = type(function)
    if kind.__module__ != "spikingjelly.activation_based.surrogate" or kind.__name__ not in SURROGATES:
        return f"lif_scan has no surrogate derivative of {kind.__module__}.{kind.__qualname__}"
    if kind.__name__ == "PiecewiseLeakyReLU" and not hasattr(function, "_sg_params"):
        return "the derivative of PiecewiseLeakyReLU is 1 / w in this version, twice its formula's"
    if not function.spiking:
        return "the surrogate function is not in spiking mode"
    name, attributes = SURROGATES[kind.__name__]
    values = [getattr(function, attribute) for attribute in attributes]
    if not all(isinstance(value, (int, float)) for value in values) or (values and values[0] <= 0):
        given = ", ".join(f"{a}={v!r}" for a, v in zip(attributes, values, strict=True))
        return f"lif_scan takes no {kind.__name__} with {given}"
    return {"surrogate": name, **dict(zip(("alpha", "beta"), values, strict=False))}


def _without_derivative(node: Any, x: Tensor, v: Tensor) -> bool:
    """Version 0.0.0.0.14 gives the spikes of IF and LIF nodes in eval() no derivative at all."""
    old = not hasattr(node, "materialize_states")
    wanted = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad)
    return old and wanted and not node.training and not hasattr(node, "w")


def _state(node: Any, x: Tensor) -> Tensor:
    """The potential that a call begins with, made as SpikingJelly makes it."""
    if hasattr(node, "materialize_states"):
        v: Tensor = node.materialize_states((x,), (node.v,), "m")[0]
        return v
    return node.v if isinstance(node.v, Tensor) else x.new_tensor(node.v)


def _run(
    node: Any, settings: dict[str, Any], x: Tensor, v: Tensor, trace: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The spikes, [T, ...], the last potential, [...], and with trace the potential after each step, [T, ...]."""
    if hasattr(node, "w"):
        rate = node.w.sigmoid().to(x.dtype)
        settings = settings | {"decay": 1 - rate}
        x = x * rate if node.decay_input else x
    if trace:
        return lif_scan(x, v, **settings, return_v=True)
    spikes, v_final = lif_scan(x, v, **settings)
    return spikes, v_final, None


def _stateful(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def multi_step_forward(node: Any, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        settings = _settings(node, x_seq.dtype)
        if isinstance(settings, str) or args or kwargs:
            return original(node, x_seq, *args, **kwargs)
        v = _state(node, x_seq)
        if v.dtype != x_seq.dtype or _without_derivative(node, x_seq, v):
            return original(node, x_seq)
        spikes, node.v, v_seq = _run(node, settings, x_seq, v, node.store_v_seq)
        if node.store_v_seq:
            node.v_seq = v_seq
        return spikes

    return multi_step_forward


def _functional(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def multi_step_functional_forward(node: Any, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (x, *more), (v, *_) = inputs, states
        settings = _settings(node, x.dtype)
        if isinstance(settings, str) or more or kwargs or v.dtype != x.dtype:
            return original(node, inputs, states, **kwargs)
        spikes, v_final, _ = _run(node, settings, x, v, False)
        return (spikes,), (v_final,)

    return multi_step_functional_forward
