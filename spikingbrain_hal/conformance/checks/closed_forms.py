"""Settings under which a result is known without the reference, and operators that are another put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...declare.registry import OPERATORS
from ...declare.spec import Case, OpSpec
from ..operators import properties_of
from ..verdict.judge import Judgement, judge, require_same_bits
from ..verdict.oracle import truth
from ..verdict.truth import Named
from . import Context, check, has_elements


def _known(spec: OpSpec, case: Case) -> tuple[str, ...]:
    forms = properties_of(spec).closed_forms
    return tuple(n for n, form in forms.items() if not set(form.packed) & set(case.given))


@check("where a formula gives the result, it is that", level=3, parts=_known, full=6)
def closed_form(ctx: Context) -> Judgement:
    form, args = properties_of(ctx.spec).closed_forms[ctx.part], ctx.args()
    given = ctx.replaced(args, **form.setting(ctx.spec.bind(args)))
    outputs = ctx.call(given)
    wide = {n: v.double() if isinstance(v, Tensor) else v for n, v in ctx.spec.bind(given).items()}
    usual = truth(ctx.spec, given, outputs)
    expected = usual.expected | form.result(wide)
    return judge(ctx.spec, replace(usual, expected=expected), outputs)


def _composes(spec: OpSpec, case: Case) -> bool:
    packed = any(spec.inputs[n].packs for n in case.given)
    return has_elements(spec, case) and properties_of(spec).composed is not None and not packed


@check(
    "operators put together give what they should: steps are the sequence, collapsing undoes expanding",
    level=3,
    applies=_composes,
    every_dtype=True,
    full=6,
)
def composed(ctx: Context) -> Judgement:
    compose, a = properties_of(ctx.spec).composed, ctx.spec.bind(ctx.args())
    assert compose is not None

    def call(op: str, args: Sequence[Any]) -> Named:
        return ctx.target.call(OPERATORS[op], args)

    found = compose(call, a)
    returned = {n: a[n] for n in found if n in ctx.spec.inputs}
    require_same_bits(found, returned, "put together")
    outputs = {n: t for n, t in found.items() if n not in returned}
    return ctx.judge(outputs) if outputs else Judgement()
