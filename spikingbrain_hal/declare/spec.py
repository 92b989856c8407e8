"""The declaration of an operator: everything about it that is not a kernel derives from one of these.

``operator(...)`` in ``spikingbrain_hal/ops/<family>/<op>.py`` takes a reference in plain PyTorch, axis names for every
tensor and a few sizes to try. From that come the torch schema, the fake kernel, the output allocation, the argument
errors, the backward operator, the conformance and benchmark cases and the row in ``docs/ops.md``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import arguments

NAMESPACE = "sbhal"
_SCHEMA_TYPES = {"float": "float", "int": "int", "bool": "bool", "str": "str"}


@dataclass(frozen=True)
class Input:
    """A tensor argument.

    Args:
        axes: Names of the axes in memory order, ``"B T H K"``; ``...`` stands for any number of axes and binds them
            as a group; alternatives are separated by ``|``; a number is an axis of exactly that size.
        dtype: A key of :data:`spikingbrain_hal.declare.arguments.DTYPES`, the name of another input to share its dtype
            with, or several joined by ``|``.
        fill: How cases fill it, a name in :data:`spikingbrain_hal.declare.fills.FILLS`.
        doc: What it is, for the generated page.
        packs: The axis that offsets or lengths divide; what lies behind the last of them is padding.
    """

    axes: str
    dtype: str = "float"
    fill: str = "normal"
    doc: str = ""
    packs: str = ""


@dataclass(frozen=True)
class Output:
    """A result tensor.

    Args:
        axes: As for an input; an axis may also be the name of an integer attribute.
        dtype: The name of an input, ``acc`` (float64 for float64 inputs, else float32), a torch dtype or its attribute.
        when: The attribute or optional input whose truth or presence makes it present; else it has zero size.
        like: An input whose shape it takes, instead of axes.
    """

    axes: str = ""
    dtype: str = "acc"
    when: str | None = None
    like: str | None = None


@dataclass(frozen=True)
class Case:
    """Sizes and attributes to run an operator at.

    Args:
        sizes: Axis name to size; ``...`` maps to a tuple.
        attrs: Attribute values that differ from the declared defaults.
        given: Optional inputs that are present.
        ragged: Lengths of the packed sequences that fill ``offsets`` inputs.
    """

    sizes: Mapping[str, Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    ragged: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """A short name, unique among an operator's cases."""
        parts = [f"{a}{n}" if a != "..." else "x".join(map(str, n)) or "scalar" for a, n in self.sizes.items()]
        parts += [f"{name}={value}" for name, value in self.attrs.items()]
        parts += list(self.given) + ([f"ragged{self.ragged}"] if self.ragged else [])
        return "-".join(parts).replace(" ", "")


@dataclass(frozen=True)
class Time:
    """How an operator runs along time: what may depend on what, and where a run can be cut.

    Args:
        axis: The time axis of the outputs.
        keys: The axis of the inputs that a step looks back along, aligned with ``axis`` at the end; ``axis`` itself
            if empty.
        state_in: The input that takes the state of a recurrence.
        state_out: The output that hands it on. A run cut in two that hands the state over is the whole run.
        causal: The attribute that hides the future; always hidden if empty.
        exempt: The attribute that counts the first keys that every step sees.
    """

    axis: str
    keys: str = ""
    state_in: str = ""
    state_out: str = ""
    causal: str = ""
    exempt: str = ""


Rule = Callable[[Mapping[str, Any]], str | None]


@dataclass(eq=False)
class OpSpec:
    """One declared operator. Build it with :func:`operator`.

    For the time of its benchmark cases ``flops`` counts operations, a product and its sum being two; ``products`` names
    the inputs multiplied. What else is true of its results, which only the conformance suite tests, stands in
    ``spikingbrain_hal/conformance/operators/<op>.py``.
    """

    name: str
    reference: Callable[..., Any]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    optional: frozenset[str]
    attributes: Mapping[str, inspect.Parameter]
    derived: Mapping[str, Callable[..., int]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    contents: tuple[Rule, ...] = ()
    differentiable: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    straight_through: bool = False
    mutates: tuple[str, ...] = ()
    autocast: tuple[str, ...] = ()
    time: Time | None = None
    cases: tuple[Case, ...] = ()
    bench: tuple[Case, ...] = ()
    flops: Callable[[Mapping[str, Any]], float] | None = None
    products: tuple[str, ...] = ()
    version: int = 1
    source: str = ""
    doc: str = ""
    forward: OpSpec | None = None
    backward: OpSpec | None = None
    raw: Any = None

    @cached_property
    def allocate(self) -> Callable[..., tuple[Tensor, ...]]:
        """Takes the arguments of a call and returns its outputs, uninitialised."""
        from ..calls.allocate import compile_allocate

        return compile_allocate(self)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of all arguments in call order: tensors, then attributes."""
        return (*self.inputs, *self.attributes)

    @property
    def schema(self) -> str:
        """The torch schema, ``name(Tensor q, ...) -> (Tensor, ...)``."""
        parts = []
        for i, name in enumerate(self.inputs):
            alias = f"(a{i}!)" if name in self.mutates else ""
            parts.append(f"Tensor{alias}{'?' if name in self.optional else ''} {name}")
        for name, parameter in self.attributes.items():
            parts.append(f"{_SCHEMA_TYPES[parameter.annotation]} {name}")
        results = ", ".join("Tensor" for _ in self.outputs)
        return f"{self.name}({', '.join(parts)}) -> " + (f"({results})" if len(self.outputs) != 1 else results)

    def bind(self, args: Sequence[Any]) -> dict[str, Any]:
        """Names the positional arguments."""
        return dict(zip(self.arguments, args, strict=True))

    def check(self, args: Sequence[Any]) -> dict[str, Any]:
        """Raises the declared argument errors; returns the sizes of all axes.

        Raises:
            ValueError: A shape, a device or an attribute is not accepted.
            TypeError: A tensor is missing or has a dtype that is not accepted.
        """
        return arguments.check(self, args)

    def check_contents(self, args: Sequence[Any]) -> None:
        """Raises the declared argument errors, also those that only a look at values shows. Waits for the device."""
        sizes = self.check(args)
        arguments.enforce(self, self.contents, {**self.bind(args), **sizes})

    def accepted_dtypes(self, name: str, a: Mapping[str, Any]) -> tuple[torch.dtype, ...]:
        """The dtypes input ``name`` may have beside the other arguments ``a``."""
        return arguments.accepted_dtypes(self, name, a)

    def fake(self, *args: Any) -> Any:
        """The fake kernel: checks the arguments and allocates the outputs."""
        self.check(args)
        return self.unwrap(self.allocate(*args))

    def unwrap(self, outputs: tuple[Tensor, ...]) -> Any:
        """A single output is returned bare, as the schema says."""
        return outputs[0] if len(outputs) == 1 else outputs

    def run_reference(self, *args: Any) -> Any:
        """Checks the arguments and runs the reference, whose dtypes autocast must not touch."""
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        reads_values = device == "cpu" or os.environ.get("SBHAL_CHECK") == "1"
        (self.check_contents if reads_values else self.check)(args)
        if not torch.is_autocast_enabled(device):
            return self.reference(*args)
        with torch.autocast(device, enabled=False):
            return self.reference(*args)
