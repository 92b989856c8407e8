"""Calls of any declared operator, drawn by hypothesis from its declaration: legal ones, and ones that hardly are."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...declare.inputs import io_dtypes, make_inputs
from ...declare.spec import Case, OpSpec
from ..operators import properties_of

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    raise ModuleNotFoundError(
        'conformance draws random calls with hypothesis: pip install "spikingbrain-hal[cli]"'
    ) from error

Drawn = TypeVar("Drawn")
Draw = Callable[[st.SearchStrategy[Any]], Any]

SIZES = (1, 2, 3, 0, 5, 7, 8, 9, 15, 16, 17, 33)  # what hypothesis calls simplest comes first
ROWS = 600
LENGTHS = (1, 0, 2, 5, 17)
NUMBERS: Mapping[str, tuple[Any, ...]] = {
    "float": (0.25, 0.75, 1.0, 1.25, -0.75),  # on the grid of currents potentials are exact, so spikes are decided
    "int": (1, 2, 3, 7),
    "bool": (False, True),
    "str": (),
}
WRONG_NUMBERS: Mapping[str, tuple[Any, ...]] = {
    "float": (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-300, 1e300, 1 << 62, True, "1", None),
    "int": (0, -1, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63), 1 << 63, 0.5, "1", None, True),
    "bool": (0, 1, 2, "yes", None),
    "str": ("", "no such name", "float64", "int8", "\x00", "ä" * 300, 0, None),
}
NOT_TENSORS: tuple[Any, ...] = (None, 0, 1.5, "x", [], [1.0], np.ones(3, np.float32))
MODES = ("no_grad", "grad", "autocast", "inference")
CHANGES = ("axis more", "axis less", "longer", "shorter", "empty", "scalar", "device", "strides", "stride 0", "values")
VALUES = (math.nan, math.inf, -math.inf, 1e30, -1, 0, 127, 1 << 20, -(1 << 31))
ALL_DTYPES = (*(getattr(torch, n) for n in ("float32", "bfloat16", "float16", "float64", "int8", "int16", "int32")),)
ALL_DTYPES = (*ALL_DTYPES, torch.int64, torch.uint8, torch.bool, torch.complex64)


def run_examples(strategy: st.SearchStrategy[Drawn], seed: str, examples: int, test: Callable[[Drawn], None]) -> None:
    """Runs a test on examples that only the seed decides; of one that fails hypothesis looks for a simpler one.

    Raises:
        Exception: What the test raised for the simplest example found.
    """
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    drawn = hypothesis.given(strategy)(test)
    settings(hypothesis.seed(zlib.crc32(seed.encode()))(drawn))()


# ---- legal calls


def _axes(spec: OpSpec) -> list[str]:
    """The axes that are free to choose, last those of sizes that depend on others."""
    names = [axis for d in spec.inputs.values() for axis in d.axes.split("|")[0].split()]
    free = [a for a in dict.fromkeys(names) if not a.isdigit() and a not in spec.derived and a != "N+1"]
    dependent = properties_of(spec).sizes
    return [*(a for a in free if a not in dependent), *dependent]


def _size(draw: Draw, axis: str, spec: OpSpec, known: Mapping[str, Any]) -> Any:
    """A size that the usual ties between axes allow; what remains illegal is drawn again."""
    given, ragged, sizes = known["given"], known["ragged"], properties_of(spec).sizes
    packed = [spec.inputs[n].packs for n in given if spec.inputs[n].fill == "offsets"]
    if axis in sizes:
        return draw(st.sampled_from(sizes[axis](known)))
    if axis == "...":
        shape = tuple(draw(st.lists(st.sampled_from(SIZES), max_size=3)))
        return shape if math.prod(shape) <= ROWS else shape[:1]
    if axis == "B" and packed:
        return 1
    if axis in packed:
        return sum(ragged) + draw(st.sampled_from((0, 0, 1, 3)))
    if axis == "B":
        return draw(st.sampled_from((1, 2, 3, 0)))
    return draw(st.sampled_from(SIZES))


@st.composite
def _cases(draw: Draw, spec: OpSpec) -> Case:
    together = [n for n in spec.inputs if spec.inputs[n].fill == "offsets"]
    given = [n for n in spec.inputs if n in spec.optional and n not in together and draw(st.booleans())]
    given += together if draw(st.booleans()) else []
    attrs, choices = {}, properties_of(spec).choices
    for name, parameter in spec.attributes.items():
        tried = [case.attrs[name] for case in spec.cases if name in case.attrs and parameter.annotation != "float"]
        pool = [parameter.default, parameter.default, *tried, *NUMBERS[parameter.annotation]]
        attrs[name] = draw(st.sampled_from(choices.get(name, pool)))
    ragged = tuple(draw(st.lists(st.sampled_from(LENGTHS), max_size=4))) if set(together) & set(given) else ()
    known: dict[str, Any] = {"given": given, "ragged": ragged, **attrs}
    sizes: dict[str, Any] = {}
    for axis in _axes(spec):
        sizes[axis] = known[axis] = _size(draw, axis, spec, known)
    return Case(sizes, attrs, tuple(given), ragged)


def _is_legal(spec: OpSpec, case: Case, seed: int) -> bool:
    """Whether the declaration accepts a drawn case, its contents too."""
    try:
        spec.check_contents(make_inputs(spec, case, None, seed))
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError):
        return False
    return True


def cases(spec: OpSpec, seed: int) -> st.SearchStrategy[Case]:
    """Legal cases of an operator: sizes with 0, 1 and odd tails, any attributes, inputs left out, ragged batches.

    Args:
        spec: The operator.
        seed: Of the inputs that the case will be filled with.
    """
    forward = spec.forward or spec
    return _cases(forward).filter(lambda case: _is_legal(forward, case, seed))


# ---- calls that may be illegal


@dataclass(frozen=True)
class Change:
    """What is done to one argument of a legal call: the value it is replaced with, or a change to the tensor."""

    argument: str
    kind: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.argument}: {self.kind}" + ("" if self.value is None else f" {self.value!r}"[:80])

    def apply(self, given: Any) -> Any:
        """The argument, changed."""
        if self.kind == "value":
            return self.value
        if not isinstance(given, Tensor):
            return given
        return given.to(self.value) if self.kind == "dtype" else _changed(given, self.kind, self.value)


def _changed(tensor: Tensor, kind: str, value: Any) -> Tensor:
    if kind == "axis more":
        return tensor[None]
    if kind == "scalar":
        return tensor.new_ones(())
    if kind == "device":
        return tensor.to("meta")
    if kind == "values":
        return _with_value(tensor, value)
    if not tensor.dim():
        return tensor
    at = value % tensor.dim()
    if kind == "axis less":
        return tensor.sum(at).to(tensor.dtype)
    if kind == "longer":
        return torch.cat([tensor, tensor.narrow(at, 0, min(1, tensor.shape[at]))], at)
    if kind == "shorter":
        return tensor.narrow(at, 0, max(0, tensor.shape[at] - 1))
    if kind == "empty":
        return tensor.narrow(at, 0, 0)
    if kind == "strides":
        return tensor.transpose(at, -1).contiguous().transpose(at, -1)
    return tensor.narrow(at, 0, min(1, tensor.shape[at])).expand_as(tensor)


def _with_value(tensor: Tensor, value: float) -> Tensor:
    """The first element replaced, by the nearest that the dtype holds."""
    if not tensor.numel():
        return tensor
    changed = tensor.contiguous().clone()
    if not (tensor.is_floating_point() or tensor.is_complex()):
        limits = torch.iinfo(tensor.dtype) if tensor.dtype != torch.bool else None
        low, high = (limits.min, limits.max) if limits else (0, 1)
        value = min(max(low, int(value)), high) if math.isfinite(value) else high
    changed.view(-1)[0] = value
    return changed


@st.composite
def _changes(draw: Draw, spec: OpSpec) -> Change:
    name = draw(st.sampled_from(spec.arguments))
    if name in spec.attributes:
        return Change(name, "value", draw(st.sampled_from(WRONG_NUMBERS[spec.attributes[name].annotation])))
    kind = draw(st.sampled_from(("value", "dtype", *CHANGES)))
    if kind == "value":
        return Change(name, kind, draw(st.sampled_from(NOT_TENSORS)))
    if kind == "stride 0" and name in spec.mutates:
        kind = "strides"  # nothing can be written to places that are one
    if kind == "dtype":
        return Change(name, kind, draw(st.sampled_from(ALL_DTYPES)))
    return Change(name, kind, draw(st.sampled_from(VALUES)) if kind == "values" else draw(st.integers(0, 3)))


@dataclass(frozen=True)
class Call:
    """A call by its recipe: a case, and what is changed in its arguments; ``public`` goes through the public function.

    The case may be illegal too. ``mode``, one of MODES, is what torch is set to around the call.
    """

    case: Case
    dtype: torch.dtype
    changes: tuple[Change, ...]
    public: bool
    mode: str

    def __str__(self) -> str:
        how = "public, " if self.public else ""
        return f"{how}{self.mode}, {self.case.id}, {self.dtype}" + "".join(f"; {change}" for change in self.changes)

    def args(self, spec: OpSpec, device: str) -> dict[str, Any]:
        """The arguments by name. A backward is given results of the right shapes, which nothing has computed."""
        forward = spec.forward or spec
        a = forward.bind(make_inputs(forward, self.case, self.dtype, 0, device))
        if spec.forward is not None:
            outputs = dict(zip(forward.outputs, forward.allocate(*a.values()), strict=True))
            results = {n: torch.ones_like(outputs[n.removeprefix("grad_")]) for n in spec.inputs.keys() - a.keys()}
            a = {n: a.get(n, results.get(n)) for n in spec.arguments}
        for change in self.changes:
            a[change.argument] = change.apply(a[change.argument])
        return a


def calls(spec: OpSpec) -> st.SearchStrategy[Call]:
    """Calls of which some are legal and most have one to three wrong arguments."""
    return st.builds(
        Call,
        _cases(spec.forward or spec),
        st.sampled_from(io_dtypes(spec)),
        st.lists(_changes(spec), max_size=3).map(tuple),
        st.booleans() if spec.forward is None else st.just(False),
        st.sampled_from(MODES),
    )
