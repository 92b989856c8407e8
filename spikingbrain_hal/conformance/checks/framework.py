"""Promises to the framework: schema, fake kernel, compile, autocast, and the transforms that are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...declare.spec import Case, OpSpec
from ..run.target import call_public
from ..verdict.judge import Mismatch, require_same_bits
from ..verdict.truth import Named, each
from . import Context, check, has_elements

OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
TRANSFORMS = ("vmap", "forward_ad", "double_backward")


@check(
    "schema, fake kernel and tracing with dynamic shapes pass torch.library.opcheck",
    level=4,
    full=2,
    parts=lambda s, c: OPCHECKS,
)
def opcheck(ctx: Context) -> None:
    ctx.call(ctx.args())  # a legal refusal, which opcheck would wrap in an error of its own
    torch.library.opcheck(ctx.spec.raw, tuple(ctx.args()), test_utils=(ctx.part,))


def _public(ctx: Context) -> Callable[..., tuple[Tensor, ...]]:
    return partial(ctx.target.differentiable, ctx.spec)


def _named(spec: OpSpec, results: tuple[Tensor, ...]) -> Named:
    return dict(zip(spec.outputs, results, strict=True))


# ---- transforms


def _transforms(spec: OpSpec, case: Case) -> tuple[str, ...]:
    if spec.forward is not None:
        return ()
    return tuple(t for t in TRANSFORMS if t != "double_backward" or (spec.differentiable and spec.backward))


def _vmap(ctx: Context, args: list[Any]) -> None:
    first = torch.stack([args[0], args[0]])
    torch.vmap(lambda x: _public(ctx)([x, *args[1:]]))(first)


def _forward_ad(ctx: Context, args: list[Any]) -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(args[0], torch.ones_like(args[0]))
        _public(ctx)([dual, *args[1:]])


def _double_backward(ctx: Context, args: list[Any]) -> None:
    x = args[0].requires_grad_()
    outputs = [t for t in _public(ctx)(args) if t.requires_grad and t.numel()]
    (first,) = torch.autograd.grad([t.sum() for t in outputs], x, create_graph=True)
    torch.autograd.grad(first.sum(), x)


_TRANSFORM = {"vmap": _vmap, "forward_ad": _forward_ad, "double_backward": _double_backward}


@check(
    "the transforms vmap, forward-mode AD and double backward are refused by name, as torch's answers are wrong",
    level=4,
    applies=lambda spec, case: has_elements(spec, case) and "float" in next(iter(spec.inputs.values())).dtype,
    full=2,
    parts=_transforms,
)
def transforms(ctx: Context) -> None:
    try:
        _TRANSFORM[ctx.part](ctx, ctx.args())
    except NotImplementedError as error:
        if ctx.spec.name not in str(error):
            raise Mismatch(f"{ctx.part}: the message does not name the operator: {error}") from error
    else:
        raise Mismatch(f"{ctx.part} was accepted")


# ---- compile


def _compiled(ctx: Context, backend: str) -> None:
    torch._dynamo.reset()
    public = partial(call_public, ctx.spec)  # its watch stays outside: a graph of torch 2.6 holds no context manager
    compiled = torch.compile(public, fullgraph=True, backend=backend)
    eager = _results_and_gradients(ctx, _public(ctx))
    with ctx.target.honest(ctx.spec, ctx.args()):
        results = _results_and_gradients(ctx, compiled)
    require_same_bits(results, eager, f"compiled with {backend} against eager")


def _results_and_gradients(ctx: Context, function: Callable[..., tuple[Tensor, ...]]) -> Named:
    spec, a = ctx.spec, ctx.spec.bind(ctx.args())
    leaves = {n: a[n].requires_grad_() for n in spec.differentiable if a[n] is not None}
    found = _named(spec, function(list(a.values()))) | {n: a[n] for n in spec.mutates}
    smooth = [t for t in found.values() if t.requires_grad and t.numel()]
    if smooth:
        torch.autograd.backward(smooth, [torch.ones_like(t) for t in smooth])
    gradients = {f"grad_{n}": t.grad for n, t in leaves.items() if t.grad is not None}
    return {n: t.detach() for n, t in found.items()} | gradients


@check(
    "one graph of torch.compile holds it, forwards and backwards, and changes nothing",
    level=4,
    applies=lambda spec, case: has_elements(spec, case) and spec.forward is None,
    full=2,
)
def compiled(ctx: Context) -> None:
    _compiled(ctx, "aot_eager")


@check(
    "compiling with inductor changes nothing either",
    level=4,
    applies=lambda spec, case: has_elements(spec, case) and spec.forward is None and spec.time is not None,
    quick=0,
    full=1,
)
def inductor(ctx: Context) -> None:
    _compiled(ctx, "inductor")


@check(
    "autocast casts the inputs that the declaration names and no others",
    level=4,
    applies=lambda spec, case: has_elements(spec, case) and spec.forward is None,
    full=2,
)
def autocast(ctx: Context) -> None:
    spec, args = ctx.spec, ctx.args()
    named = spec.bind(each(args, Tensor.clone))
    cast = [
        a.bfloat16() if n in spec.autocast and isinstance(a, Tensor) and a.is_floating_point() else a
        for n, a in named.items()
    ]
    with torch.no_grad(), torch.autocast(ctx.target.device, dtype=torch.bfloat16):
        inside = _named(spec, _public(ctx)(args))
    require_same_bits(inside, _named(spec, _public(ctx)(cast)), "under autocast")
