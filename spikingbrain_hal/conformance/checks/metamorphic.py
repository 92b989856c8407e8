"""Metamorphic relations: how results must change when arguments change, whatever the values are."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ...declare.spec import Case, OpSpec
from ..verdict.judge import FLOOR, UNIT_ROUNDOFF, WORKING_ROUNDOFF, Judgement, judge, require_same_bits
from ..verdict.truth import Named, Truth, in_float64, sums_of_absolute_terms
from . import Context, axes_of, check, has_elements

Values = Mapping[str, Any]


def _generator(ctx: Context, what: str) -> Generator:
    return Generator().manual_seed(zlib.crc32(f"{ctx.seed}/{ctx.spec.name}/{ctx.case.id}/{what}".encode()))


def _shown(spec: OpSpec, case: Case) -> dict[str, Any]:
    """What is known of a case before its tensors are made: sizes, attributes, and which inputs are given."""
    attributes = {n: case.attrs.get(n, p.default) for n, p in spec.attributes.items()}
    return {**case.sizes, **attributes, **{n: n in case.given or n not in spec.optional for n in spec.inputs}}


# ---- linearity


def _coarse(like: Tensor, generator: Generator) -> Tensor:
    """Numbers of so few bits that a sum of three of them is exact in every dtype."""
    return (torch.randint(-32, 33, like.shape, generator=generator) / 8).to(like)


@check(
    "outputs are linear in the inputs that the declaration says: f(a + 2 b) is f(a) + 2 f(b)",
    level=3,
    applies=lambda spec, case: has_elements(spec, case) and bool(spec.linear),
    full=4,
)
def superposition(ctx: Context) -> Judgement:
    spec, args = ctx.spec, ctx.args()
    generator, worst = _generator(ctx, "superposition"), Judgement()
    for output, inputs in spec.linear.items():
        given = {n: t for n, t in spec.bind(args).items() if n in inputs and t is not None}
        one, other = ({n: _coarse(t, generator) for n, t in given.items()} for _ in range(2))
        sums = {n: one[n] + 2 * other[n] for n in given}
        f_one, f_other, f_sums = (ctx.call(ctx.replaced(args, **values))[output] for values in (one, other, sums))
        absolute = in_float64(spec, ctx.replaced(args, **{n: one[n].abs() + 2 * other[n].abs() for n in given}))
        magnitude = sums_of_absolute_terms(spec, absolute)[output].abs()
        roundings = 3 * (FLOOR * WORKING_ROUNDOFF + 2 * UNIT_ROUNDOFF[f_sums.dtype])
        allowed = roundings * magnitude.clamp_min(float(magnitude.square().mean().sqrt()))
        expected = f_one.double() + 2 * f_other.double()
        truth = Truth({output: expected}, {output: f_sums}, {}, allowed={output: allowed})
        worst = worst.add(judge(spec, truth, {output: f_sums}))
    return worst


# ---- permutations


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


_HEADS, _ROWS = Independent("H", ("Hq",)), Independent("...")
# Neurons of lif_scan are not among them: a vector's lanes and its tail may round differently.
INDEPENDENT: Mapping[str, tuple[Independent, ...]] = {
    "gated_linear_attention": (_HEADS, Independent("B", ("N",))),
    "gated_linear_attention_backward": (_HEADS, Independent("B", ("N",))),
    "gated_linear_attention_step_": (_HEADS, Independent("B", ("slot",), unless="slots")),
    "attention": (_HEADS, Independent("B")),
    "attention_backward": (_HEADS, Independent("B")),
    "spike_encode": (_ROWS,),
    "spike_quantize": (_ROWS,),
    "spike_expand": (_ROWS,),
    "spike_collapse": (_ROWS,),
    "spike_linear": (_ROWS, Independent("N")),
}


def _places(case: Case, axis: str) -> int:
    size = case.sizes[axis]
    return int(size) if axis != "..." else size[0] if size else 0


def _independent(spec: OpSpec, case: Case) -> tuple[str, ...]:
    return tuple(i.axis for i in INDEPENDENT.get(spec.name, ()) if _places(case, i.axis) > 1)


def _permute(spec: OpSpec, name: str, tensor: Tensor, axes: Sequence[str], order: Tensor) -> Tensor:
    names = axes_of(spec, name, tensor)
    for axis in axes:
        if axis in names:
            block = tensor.shape[names.index(axis)] // len(order)
            whole = (order[:, None] * block + torch.arange(block)).flatten()
            tensor = tensor.index_select(names.index(axis), whole.to(tensor.device))
    return tensor


@check(
    "permuting heads, rows or the batch permutes the results",
    level=3,
    quick=2,
    full=4,
    parts=_independent,
)
def permuted(ctx: Context) -> Judgement:
    spec, args = ctx.spec, ctx.args()
    (chosen,) = (i for i in INDEPENDENT[spec.name] if i.axis == ctx.part)
    a = spec.bind(args)
    axes = (chosen.axis, *(chosen.along if not chosen.unless or a[chosen.unless] is None else ()))
    order = torch.randperm(_places(ctx.case, chosen.axis), generator=_generator(ctx, "order"))
    order = order.flip(0) if bool((order == torch.arange(len(order))).all()) else order
    moved = {n: _permute(spec, n, t, axes, order) for n, t in a.items() if isinstance(t, Tensor)}
    permuted_args = ctx.replaced(args, **moved)
    # not bit for bit: what a vector unit computes may differ from what is computed behind its last whole vector
    return ctx.judge(ctx.call(permuted_args), permuted_args, f"permuted along {ctx.part}")


# ---- inputs that may be narrower


def _broadcasts(spec: OpSpec, case: Case) -> tuple[str, ...]:
    """The given inputs whose last axis may be left out."""
    found = {n: [option.split() for option in d.axes.split("|")] for n, d in spec.inputs.items()}
    return tuple(
        n
        for n, options in found.items()
        if len(options) == 2 and options[0][:-1] == options[1] and (n not in spec.optional or n in case.given)
    )


@check("an input without its last axis is the same as one expanded along it", level=3, parts=_broadcasts, full=4)
def broadcast(ctx: Context) -> Judgement:
    args = ctx.args()
    whole = ctx.spec.bind(args)[ctx.part]
    narrow = whole.select(-1, 0).contiguous()
    found = ctx.call(ctx.replaced(args, **{ctx.part: narrow[..., None].expand_as(whole).contiguous()}))
    gradient = f"grad_{ctx.part}"
    if gradient in found:
        found[gradient] = found[gradient].double().sum(-1).to(narrow.dtype)
    return ctx.judge(found, ctx.replaced(args, **{ctx.part: narrow}), f"narrow {ctx.part}")


# ---- pairs of calls


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
    """A rule that makes pairs of calls of some operators; ``shows`` says whether a case can show it."""

    pair: Callable[[Values], Pair]
    ops: tuple[str, ...]
    shows: Callable[[Values], bool]


RELATIONS: dict[str, Relation] = {}


def _relation(*ops: str, shows: Callable[[Values], bool] = lambda a: True) -> Callable[..., Any]:
    def register(pair: Callable[[Values], Pair]) -> Callable[[Values], Pair]:
        RELATIONS[getattr(pair, "__name__", "").strip("_")] = Relation(pair, ops, shows)
        return pair

    return register


def _times(factor: float, a: Values, *names: str) -> dict[str, Any]:
    return {n: None if a[n] is None else factor * a[n] for n in names}


_GLA = ("gated_linear_attention", "gated_linear_attention_backward")
_ATTENTION = ("attention", "attention_backward")


@_relation(*_GLA, *_ATTENTION, "gated_linear_attention_step_")
def _scale_moved_into_queries(a: Values) -> Pair:
    # not exactly: what decays to the smallest numbers is rounded in other places
    return Pair(_times(4.0, a, "q") | _times(0.25, a, "scale"), factors={"grad_q": 4.0}, exact=False)


@_relation(*_ATTENTION, shows=lambda a: a["causal"] and a["window"] == 0)
def _window_of_every_key(a: Values) -> Pair:
    return Pair({"window": a["k"].shape[1]}, exact=False)


@_relation("lif_scan")
def _every_potential_doubled(a: Values) -> Pair:
    potentials = ("x", "v0", "v_threshold_tensor", "v_threshold", "v_rest", "v_reset", "v_min")
    return Pair(_times(2.0, a, *potentials), factors={"v_final": 0.5, "v": 0.5})


@_relation("lif_scan", "lif_scan_backward", shows=lambda a: not a["decay_tensor"] and not a["v_threshold_tensor"])
def _numbers_given_as_tensors(a: Values) -> Pair:
    neurons = torch.ones(a["x"].shape[1:], device=a["x"].device)
    numbers = {"decay_tensor": a["decay"] * neurons, "v_threshold_tensor": a["v_threshold"] * neurons}
    return Pair(numbers, exact=False)


@_relation("spike_encode")
def _activations_doubled(a: Values) -> Pair:
    return Pair(_times(2.0, a, "x", "vth_min", "vth_max"), factors={"v_threshold": 0.5})


@_relation("spike_quantize")
def _moderate_activations_doubled(a: Values) -> Pair:
    """Its limits of the threshold are fixed, so rows stay within them."""
    x = a["x"].nan_to_num().clamp(-8, 8)
    return Pair({"x": 2 * x}, before={"x": x}, factors={"y": 0.5})


def _related(spec: OpSpec, case: Case) -> tuple[str, ...]:
    shown = _shown(spec, case)
    return tuple(name for name, r in RELATIONS.items() if spec.name in r.ops and r.shows(shown))


@check("calls whose arguments are related have related results", level=3, parts=_related, quick=2, full=6)
def related(ctx: Context) -> Judgement | None:
    args = ctx.args()
    pair = RELATIONS[ctx.part].pair(ctx.spec.bind(args))
    first = ctx.replaced(args, **pair.before)
    second = ctx.replaced(first, **pair.after)
    found: Named = {n: t * pair.factors.get(n, 1) for n, t in ctx.call(second).items()}
    expected = ctx.call(first)
    if pair.exact:
        require_same_bits(found, expected, ctx.part.replace("_", " "))
        return None
    return ctx.judge({n: t for n, t in found.items() if expected[n].numel()}, first, ctx.part)
