"""What the suite knows of each operator, a file an operator: how results are judged, and what holds among them.

A file here is found by its operator's name and calls :func:`register`; a module elsewhere that declares an operator
calls it too. A backward's properties stand with its forward's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from ...declare.registry import OPERATORS
from ...declare.spec import Case, OpSpec
from ..verdict.truth import Named, Truth

Values = Mapping[str, Any]
Call = Callable[[str, Sequence[Any]], Named]


class Independent(NamedTuple):
    """An axis whose places do not know of each other: permuting them permutes the results.

    Attributes:
        axis: Its name; the first of the axes that ``...`` stands for.
        along: Axes that are permuted with it, where each of its places owns a block of theirs.
        unless: An optional input that unties the axes.
    """

    axis: str
    along: tuple[str, ...] = ()
    unless: str = ""


class Pair(NamedTuple):
    """Two calls that must agree.

    Attributes:
        after: Arguments that the second call has instead.
        before: Arguments that both have instead.
        factors: Powers of two that outputs of the second are multiplied by.
        exact: They agree bit for bit; else the second is held to the oracle of the first.
    """

    after: Values
    before: Values = MappingProxyType({})
    factors: Mapping[str, float] = MappingProxyType({})
    exact: bool = True


class Relation(NamedTuple):
    """A rule that makes a pair of calls of a call's arguments.

    Attributes:
        pair: Makes it.
        shows: Whether a case can show it, by its sizes, its attributes, and whether each input is given.
    """

    pair: Callable[[Values], Pair]
    shows: Callable[[Values], bool] = lambda a: True


class ClosedForm(NamedTuple):
    """A setting under which a formula gives the result.

    Attributes:
        setting: Arguments that make it so.
        result: What some outputs are then, in float64, from the arguments in float64.
        packed: Inputs that the formula does not know of.
    """

    setting: Callable[[Values], Values]
    result: Callable[[Values], Named]
    packed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Properties:
    """What the suite knows of one operator beyond its declaration.

    Attributes:
        magnitude: Inputs whose absolute values give, through the reference, the sum of absolute terms that errors are
            measured against. A backward has those of its forward and its gradients.
        terms: Rewrites more arguments where a difference would hide terms, and gives by an output's name what to add to
            that output's sum.
        replay: What the results should have been, for an operator that decides spikes: judged on those it gave.
        linear: Outputs, each with the inputs that it is jointly linear in. A backward is linear in its gradients.
        equivalent: Pairs of attribute settings that must give the same results, of a forward and its backward.
        independent: Axes whose places do not know of each other.
        relations: Pairs of calls that must agree, by name.
        closed_forms: Settings under which a formula gives the result, by name.
        composed: The results as other operators give them, put together. Where it gives an input instead, the input
            must come back bit for bit.
        smooth: Arguments of a backward under which its gradients are derivatives.
        factors: Inputs, one factor of every product: the other would lose its bits along with it.
        one_large_term: Arguments for which every factor is a power of two or has few bits and every sum is exact in
            float32, but holds one term as large as is asked for among ones: a narrower sum loses the ones.
        proportional: Outputs, each with the inputs that it is in proportion to as long as they are tiny; those of
            ``linear`` if empty.
        wrong_contents: By an input's name, values of it that only a look into memory shows to be wrong, each with what
            is wrong; those of offsets and lengths are known.
        nonfinite: Calls with infinite and NaN arguments on a device, by name, each with what is said of it; the finite
            numbers among them have few bits, so that decisions are the same in float32 and in float64.
        huge: A case with an axis ``...`` that can be repeated beyond 2^31 elements.
        blocks: The blocks of a model that it works in, see :mod:`spikingbrain_hal.conformance.checks.blocks`.
        choices: Values of attributes to draw from, where the usual ones will not do.
        sizes: Sizes of axes to draw from, given the attributes, what inputs are ``given`` and the sizes drawn before.
    """

    magnitude: tuple[str, ...] = ()
    terms: Callable[[Values], Values] | None = None
    replay: Callable[[OpSpec, Sequence[Any], Mapping[str, Tensor]], Truth] | None = None
    linear: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    equivalent: tuple[tuple[Values, Values], ...] = ()
    independent: tuple[Independent, ...] = ()
    relations: Mapping[str, Relation] = field(default_factory=dict)
    closed_forms: Mapping[str, ClosedForm] = field(default_factory=dict)
    composed: Callable[[Call, Values], Named] | None = None
    smooth: Values = field(default_factory=dict)
    factors: tuple[str, ...] = ()
    one_large_term: Callable[[Values, float], Values] | None = None
    proportional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wrong_contents: Mapping[str, Callable[[Values], Iterable[tuple[str, Tensor]]]] = field(default_factory=dict)
    nonfinite: Mapping[str, Callable[[str], Iterable[tuple[str, Values]]]] = field(default_factory=dict)
    huge: Case | None = None
    blocks: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    sizes: Mapping[str, Callable[[Values], Sequence[int]]] = field(default_factory=dict)


PROPERTIES: dict[str, Properties] = {}


def register(op: str, properties: Properties, backward: Properties | None = None) -> None:
    """Makes known what the suite knows of a declared operator.

    Args:
        op: Its name.
        properties: Its own.
        backward: Those of its backward beyond what follows from the forward's: ``magnitude`` and ``linear``.

    Raises:
        ValueError: No such operator is declared, it is known already, or a property names what the operator lacks.
    """
    spec = OPERATORS.get(op)
    if spec is None:
        raise ValueError(f"properties of {op}: there is no such operator; declared are {', '.join(OPERATORS)}")
    if op in PROPERTIES:
        raise ValueError(f"properties of {op}: they are registered already")
    known = {op: properties}
    if spec.backward is not None:
        known[spec.backward.name] = _derive(spec.backward, properties, backward or Properties())
    elif backward is not None:
        raise ValueError(f"properties of {op}: backward is given, and {op} has none")
    for name, each in known.items():
        _check_names(OPERATORS[name], each)
    PROPERTIES.update(known)


def properties_of(spec: OpSpec) -> Properties:
    """What the suite knows of an operator.

    Raises:
        ValueError: Nothing, as no file or module says.
    """
    _find((spec.forward or spec).name)
    return PROPERTIES[spec.name]


@cache
def _find(op: str) -> None:
    """Imports the operator's file, if this folder has it."""
    module = f"{__name__}.{op}"
    if find_spec(module) is not None:
        import_module(module)
    if op not in PROPERTIES:
        file = f"{module.replace('.', '/')}.py"
        expected = f"expected register({op!r}, ...) in {file}, or in the module that declares it"
        raise ValueError(f"the suite knows nothing of {op}, {expected}")


def _derive(backward: OpSpec, forward: Properties, own: Properties) -> Properties:
    gradients = tuple(n for n in backward.inputs if n.startswith("grad_"))
    magnitude = own.magnitude or (*forward.magnitude, *gradients)
    return replace(own, magnitude=magnitude, linear=own.linear or dict.fromkeys(backward.outputs, gradients))


def _check_names(spec: OpSpec, known: Properties) -> None:
    """A misspelt name would be tested less, and nobody would see."""
    inputs, outputs, attributes = set(spec.inputs), {*spec.outputs, *spec.mutates}, set(spec.attributes)
    axes = {axis for declared in spec.inputs.values() for axis in declared.axes.replace("|", " ").split()}
    named: list[tuple[str, Iterable[str], Set[str]]] = [
        ("magnitude", known.magnitude, inputs),
        ("linear", known.linear, outputs),
        ("linear", chain(*known.linear.values()), inputs),
        ("equivalent", chain(*chain(*known.equivalent)), attributes),
        ("independent", chain(*((i.axis, *i.along) for i in known.independent)), axes),
        ("independent", (i.unless for i in known.independent if i.unless), spec.optional),
        ("closed_forms", chain(*(form.packed for form in known.closed_forms.values())), spec.optional),
        ("smooth", known.smooth, set(spec.arguments)),
        ("factors", known.factors, inputs),
        ("proportional", known.proportional, outputs),
        ("proportional", chain(*known.proportional.values()), inputs),
        ("wrong_contents", known.wrong_contents, inputs),
        ("choices", known.choices, attributes),
        ("sizes", known.sizes, axes),
    ]
    for which, names, accepted in named:
        for wrong in sorted(set(names) - accepted):
            expected = ", ".join(sorted(accepted)) or "none"
            raise ValueError(f"properties of {spec.name}: {which} names {wrong!r}, expected {expected}")
