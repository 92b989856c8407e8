"""Settings under which a result is known without the reference, and operators that are another put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...declare.registry import OPERATORS
from ...declare.spec import Case, OpSpec
from ..verdict.judge import Judgement, judge, require_same_bits
from ..verdict.truth import Named, truth
from . import Context, check, has_elements

Values = Mapping[str, Any]


class ClosedForm(NamedTuple):
    """Arguments to replace, and what some outputs are then, in float64, from the arguments in float64."""

    op: str
    setting: Callable[[Values], Values]
    result: Callable[[Values], Named]
    packed: tuple[str, ...]


CLOSED_FORMS: dict[str, ClosedForm] = {}


def _closed_form(
    op: str, setting: Callable[[Values], Values], packed: tuple[str, ...] = ()
) -> Callable[[Callable[[Values], Named]], Callable[[Values], Named]]:
    """Registers a formula; ``packed`` names inputs that it does not know of."""

    def register(result: Callable[[Values], Named]) -> Callable[[Values], Named]:
        CLOSED_FORMS[getattr(result, "__name__", "").strip("_")] = ClosedForm(op, setting, result, packed)
        return result

    return register


def _per_query(a: Values, name: str) -> Tensor:
    """Keys, values or a state for every query head, the head axis second."""
    tensor: Tensor = a[name] if name == "initial_state" else a[name].transpose(1, 2)
    return tensor.repeat_interleave(a["q"].shape[2] // a["k"].shape[2], 1)


@_closed_form("gated_linear_attention", lambda a: {"g": torch.zeros_like(a["g"])}, packed=("cu_seqlens",))
def _nothing_forgotten(a: Values) -> Named:
    """Without decay the memory is the sum of all writes: a triangle of scores."""
    scores = (a["scale"] * a["q"].transpose(1, 2) @ _per_query(a, "k").mT).tril()
    o = scores @ _per_query(a, "v")
    final = torch.einsum("bthk,bthv->bhkv", a["k"], a["v"])
    if a["initial_state"] is not None:
        o = o + a["scale"] * a["q"].transpose(1, 2) @ _per_query(a, "initial_state")
        final = final + a["initial_state"]
    return {"o": o.transpose(1, 2)} | ({"final_state": final} if a["output_final_state"] else {})


@_closed_form("gated_linear_attention", lambda a: {"g": torch.full_like(a["g"], -torch.inf)}, packed=("cu_seqlens",))
def _everything_forgotten(a: Values) -> Named:
    own = a["scale"] * (a["q"].transpose(1, 2) * _per_query(a, "k")).sum(-1, keepdim=True)
    return {"o": (own * _per_query(a, "v")).transpose(1, 2)}


@_closed_form(
    "attention",
    lambda a: {"q": torch.zeros_like(a["q"]), "causal": False, "window": 0},
    packed=("cu_seqlens_q", "kv_lengths"),
)
def _indifferent_queries(a: Values) -> Named:
    """Scores of 0 make the mean of the values, and the number of keys."""
    o = _per_query(a, "v").mean(2, keepdim=True).expand(-1, -1, a["q"].shape[1], -1)
    count = a["q"].new_full((a["q"].shape[0], a["q"].shape[2], a["q"].shape[1]), a["k"].shape[1])
    return {"o": o.transpose(1, 2), "lse": count.log()}


@_closed_form(
    "attention",
    lambda a: {"k": a["k"][:, -1:], "v": a["v"][:, -1:], "causal": False, "window": 0, "sinks": 0},
    packed=("cu_seqlens_q", "kv_lengths"),
)
def _one_key(a: Values) -> Named:
    """A single key has all the weight whatever its score is, and the score is the LSE."""
    scores = a["scale"] * (a["q"].transpose(1, 2) * _per_query(a, "k")).sum(-1)
    return {"o": _per_query(a, "v").expand(-1, -1, a["q"].shape[1], -1).transpose(1, 2), "lse": scores}


@_closed_form(
    "lif_scan",
    lambda a: {
        "decay": 1.0,
        "decay_tensor": None,
        "v_rest": 0.0,
        "reset": "none",
        "reset_next_step": False,
        "v_min": -torch.inf,
    },
)
def _perfect_integrator(a: Values) -> Named:
    start = 0.0 if a["v0"] is None else a["v0"]
    v = start + a["input_gain"] * a["x"].cumsum(0)
    return {"v_final": v[-1]} | ({"v": v} if a["return_v"] else {})


@_closed_form("spike_linear", lambda a: {"counts": torch.zeros_like(a["counts"])})
def _silence(a: Values) -> Named:
    shape = (*a["counts"].shape[:-1], a["weight"].shape[0])
    bias = a["v_threshold"].new_zeros(shape[-1]) if a["bias"] is None else a["bias"]
    return {"y": bias.expand(shape)}


@_closed_form("spike_encode", lambda a: {"x": torch.full_like(a["x"], -2.0), "k": 3.0, "vth_min": 1e-5, "vth_max": 1e4})
def _level_rows(a: Values) -> Named:
    """Every activation of a row with a single value is k spikes."""
    counts = torch.full_like(a["x"], -3.0)
    threshold = a["x"].abs()[..., :1] / 3.0
    return {"counts": counts} | ({"v_threshold": threshold} if a["mean_dtype"] == "float32" else {})


def _known(spec: OpSpec, case: Case) -> tuple[str, ...]:
    forms = {name: form for name, form in CLOSED_FORMS.items() if form.op == spec.name}
    return tuple(n for n, form in forms.items() if not set(form.packed) & set(case.given))


@check("where a formula gives the result, it is that", level=3, parts=_known, full=6)
def closed_form(ctx: Context) -> Judgement:
    form, args = CLOSED_FORMS[ctx.part], ctx.args()
    given = ctx.replaced(args, **form.setting(ctx.spec.bind(args)))
    outputs = ctx.call(given)
    wide = {n: v.double() if isinstance(v, Tensor) else v for n, v in ctx.spec.bind(given).items()}
    usual = truth(ctx.spec, given, outputs)
    expected = usual.expected | form.result(wide)
    return judge(ctx.spec, replace(usual, expected=expected), outputs)


# ---- operators that are another put together


def _expanded_and_collapsed(ctx: Context) -> None:
    a = ctx.spec.bind(ctx.args())
    trains = ctx.call(list(a.values()))["trains"]
    found = ctx.target.call(OPERATORS["spike_collapse"], [trains, a["coding"], a["bit_order"]])
    require_same_bits(found, {"counts": a["counts"]}, "collapsed after expanding")


def _stepped(ctx: Context) -> Judgement:
    """One step after another, on the memory that the last one left."""
    a = ctx.spec.bind(ctx.args())
    (batch, steps, _, channels), values = a["q"].shape, a["v"].shape[-1]
    state = a["q"].new_zeros(batch, a["k"].shape[2], channels, values, dtype=torch.float32)
    if a["initial_state"] is not None:
        state.copy_(a["initial_state"])
    outputs = []
    for t in range(steps):
        step = [*(a[n][:, t].contiguous() for n in ("q", "k", "v", "g")), state, None, a["scale"]]
        found = ctx.target.call(OPERATORS["gated_linear_attention_step_"], step)
        outputs.append(found["o"])
        state = found["state"]
    return ctx.judge({"o": torch.stack(outputs, 1)} | ({"final_state": state} if a["output_final_state"] else {}))


COMPOSITES: Mapping[str, Callable[[Context], Judgement | None]] = {
    "spike_expand": _expanded_and_collapsed,
    "gated_linear_attention": _stepped,
}


@check(
    "operators put together give what they should: steps are the sequence, collapsing undoes expanding",
    level=3,
    applies=lambda spec, case: (
        has_elements(spec, case) and spec.name in COMPOSITES and not any(spec.inputs[n].packs for n in case.given)
    ),
    every_dtype=True,
    full=6,
)
def composed(ctx: Context) -> Judgement | None:
    return COMPOSITES[ctx.spec.name](ctx)
