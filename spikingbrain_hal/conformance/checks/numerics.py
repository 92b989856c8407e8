"""What a backend declares of its float32, measured: how many bits factors and sums keep, and the smallest numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from ...backend.backend import Numerics
from ...declare.spec import Case, OpSpec
from ..operators import Properties, properties_of
from ..verdict.judge import UNIT_ROUNDOFF, Judgement, Mismatch
from ..verdict.oracle import sums_of_absolute_terms
from ..verdict.truth import Named, in_float64, named_results
from . import Context, check, has_elements

STORED_BITS = {True: 7, False: 10}  # by whether TF32 is declared: factors keep more than bfloat16, or more than TF32
LOST = 0.25
VISIBLE = 2.0**-17  # of a result: what low bits add, where much is forgotten, may be less than rounding
EXACT_ENOUGH = 2.0**-18
ROUNDINGS = 16
TINY = 2.0**-136
GRAIN = 2.0**-143  # what sums of so small numbers, each rounded to 2^-149, may be off by


def _consistent(ctx: Context, changes: Mapping[str, Any]) -> list[Any]:
    """The case's arguments with some replaced, and what the forward saves for them."""
    spec, forward = ctx.spec, ctx.spec.forward
    a = {**spec.bind(ctx.args()), **changes}
    if forward is not None:
        saved = named_results(forward, forward.reference, [a[n] for n in forward.arguments])
        a |= {n: saved[n] for n in forward.saved}
    return list(a.values())


def _exact(ctx: Context, args: list[Any]) -> Named:
    with torch.no_grad():
        return named_results(ctx.spec, ctx.spec.reference, in_float64(ctx.spec, args))


def _one_large_term(ctx: Context, first: float) -> Mapping[str, Any]:
    make = properties_of(ctx.spec).one_large_term
    assert make is not None
    return make(ctx.spec.bind(ctx.args()), first)


def _proportional(known: Properties) -> Mapping[str, tuple[str, ...]]:
    return known.proportional or known.linear


# ---- products


def _with_low_bits(tensor: Tensor, kept: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Numbers of ``kept`` stored bits, and the same with a quarter to three eighths of a step more, far from a tie."""
    step = 1 << 23 - kept
    coarse = tensor.view(torch.int32) & -step
    more = torch.randint(step // 4, 3 * step // 8 + 1, tensor.shape, generator=generator, dtype=torch.int32)
    return coarse.view(torch.float32), (coarse + more.to(coarse.device)).view(torch.float32)


def _products(ctx: Context, declared: Numerics) -> float:
    """Low bits of a factor must show in the result as they do in the exact one."""
    generator = Generator().manual_seed(zlib.crc32(f"{ctx.seed}/{ctx.spec.name}/low bits".encode()))
    a, kept, known = ctx.spec.bind(ctx.args()), STORED_BITS[declared.tf32], properties_of(ctx.spec)
    pairs = {n: _with_low_bits(a[n], kept, generator) for n in known.factors if a[n] is not None}
    coarse = ctx.replaced(ctx.args(), **{n: pair[0] for n, pair in pairs.items()})
    base, exact_base, worst = ctx.call(coarse), _exact(ctx, coarse), 0.0
    for name, (_, fine) in pairs.items():
        args = ctx.replaced(coarse, **{name: fine})
        found, expected = ctx.call(args), _exact(ctx, args)
        for output in known.linear:
            true = (expected[output] - exact_base[output]).nan_to_num()
            if true.norm() <= VISIBLE * exact_base[output].nan_to_num().norm():
                continue
            lost = (found[output].double() - base[output].double()).nan_to_num() - true
            share = float(lost.norm() / true.norm())
            if not share <= LOST:
                raise Mismatch(
                    f"products: {share:.0%} of what the bits of {name} past the first {kept} add to {output} is lost, "
                    f"and the backend declares tf32={declared.tf32}",
                    share / LOST,
                )
            worst = max(worst, share / LOST)
    return worst


# ---- sums


def _sums(ctx: Context, declared: Numerics) -> float:
    first = 256.0 if declared.tf32 else 2.0**13
    args = _consistent(ctx, _one_large_term(ctx, first))
    expected, magnitude = _exact(ctx, args), sums_of_absolute_terms(ctx.spec, in_float64(ctx.spec, args))
    roundoff = UNIT_ROUNDOFF[getattr(torch, declared.accumulate)]
    share = EXACT_ENOUGH if declared.accumulate == "float32" else ROUNDINGS * roundoff
    worst = 0.0
    for name, tensor in ctx.call(args).items():
        if tensor.numel() and tensor.is_floating_point():
            allowed = share * (magnitude[name].abs().nan_to_num(posinf=0, neginf=0) + expected[name].abs().nan_to_num())
            error = (tensor.double() - expected[name]).nan_to_num(math.inf, math.inf, -math.inf)
            error = torch.where(expected[name].isfinite(), error, 0.0)
            ratio = float((error.abs() / allowed.clamp_min(share)).max())
            if not ratio <= 1:
                raise Mismatch(
                    f"sums: {name} misses small terms beside a large one by {float(error.abs().max()):.3g}, "
                    f"and the backend declares accumulate={declared.accumulate!r}",
                    ratio,
                )
            worst = max(worst, ratio)
    return worst


# ---- the smallest numbers


def _denormals(ctx: Context, declared: Numerics) -> float:
    proportional, setting = _proportional(properties_of(ctx.spec)), _one_large_term(ctx, 1.0)
    a = {**ctx.spec.bind(ctx.args()), **setting}
    tiny = {n: TINY * a[n] for names in proportional.values() for n in names if a[n] is not None}
    args = _consistent(ctx, {**setting, **tiny})
    expected = _exact(ctx, args)
    worst = 0.0
    for name, tensor in ctx.call(args).items():
        if not tensor.numel() or name not in proportional:
            continue
        error = (tensor.double() - expected[name]).abs()
        if declared.flush_to_zero:
            error = torch.where(tensor == 0, 0.0, error)
        ratio = float((error / GRAIN).max())
        if not ratio <= 1:
            lost = "flushed to 0" if not tensor.any() else "wrong"
            raise Mismatch(
                f"denormals: {name} is {lost} where it is {float(expected[name].abs().max()):.3g}, and the backend "
                f"declares flush_to_zero={declared.flush_to_zero}",
                ratio,
            )
        worst = max(worst, ratio)
    return worst


_PROBES: Mapping[str, Callable[[Context, Numerics], float]] = {
    "products": _products,
    "sums": _sums,
    "denormals": _denormals,
}


def _probes(spec: OpSpec, case: Case) -> tuple[str, ...]:
    known = properties_of(spec)
    sums = known.one_large_term is not None
    denormals = sums and bool(_proportional(known)) and spec.forward is None
    shown = {"products": bool(known.factors), "sums": sums, "denormals": denormals}
    return tuple(name for name, shows in shown.items() if shows)


@check(
    "float32 is what the backend declares: the bits that factors and sums keep, and what becomes of denormals",
    level=3,
    applies=has_elements,
    full=2,
    parts=_probes,
)
def numerics(ctx: Context) -> Judgement:
    return Judgement(_PROBES[ctx.part](ctx, ctx.target.backend.numerics))
