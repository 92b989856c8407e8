"""Calls that hypothesis draws: legal ones against the oracle, any others for a result or an error that says why."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import ops
from ...declare.spec import NAMESPACE, OpSpec
from ...errors import UnsupportedOp
from ..run.target import Lied
from ..verdict.judge import Judgement, Mismatch, judge
from ..verdict.oracle import truth
from . import Context, check
from .memory import call_in_place, laid_out

if TYPE_CHECKING:
    from ..run.strategies import Call

SHAPES = 5
SLACK = 3.0  # times what is allowed, as results have few elements
LAYOUTS = ("", "transposed", "sliced", "stepped")
CALLS = 50
SEARCHES = 150  # simpler examples tried once one has failed
TRACE = "SBHAL_TRACE"
CASTABLE = (torch.float32, torch.bfloat16, torch.float16)
TYPED = (ValueError, TypeError, NotImplementedError, torch.OutOfMemoryError)


def _seed(ctx: Context) -> str:
    return "/".join((str(ctx.seed), ctx.spec.name, ctx.case.id, str(ctx.dtype), ctx.part))


def _trace(ctx: Context, what: object) -> None:
    if os.environ.get(TRACE):
        print(f"{ctx.spec.name}: {what}", file=sys.stderr, flush=True)


class _Search:
    """Ends hypothesis' search for a simpler failure: beyond so many tries only known failures fail."""

    def __init__(self) -> None:
        self.failed: dict[str, Exception] = {}
        self.tries = 0

    def skips(self, what: str) -> bool:
        if what in self.failed:
            raise self.failed[what]
        self.tries += bool(self.failed)
        return self.tries > SEARCHES

    def fail(self, what: str, error: Exception) -> None:
        self.failed[what] = error
        raise error


@check(
    "calls of random shapes, strides, attributes and ragged batches are within three times the tolerance",
    level=3,
    applies=lambda spec, case: True,
    every_dtype=True,
    full=8,
)
def random_shapes(ctx: Context) -> Judgement:
    from hypothesis import strategies as st

    from ..run.strategies import cases, run_examples

    found, served, search, refused = Judgement(), 0, _Search(), UnsupportedOp("no call was drawn")

    def test(drawn: Any) -> None:
        nonlocal found, served, refused
        case, layout = drawn
        what = f"{case.id} {layout}"
        if search.skips(what):
            return
        _trace(ctx, what)
        small = replace(ctx, case=case, part=layout, known={})
        args = laid_out(small, small.args())
        try:
            outputs = call_in_place(small, [a.clone() if n in ctx.spec.mutates else a for n, a in _named(ctx, args)])
            found = found.add(judge(ctx.spec, truth(ctx.spec, args, outputs), outputs, SLACK))
        except UnsupportedOp as error:
            refused = error
        except Lied as error:
            search.fail(what, Lied(f"{what}: {error}"))
        except Exception as error:
            search.fail(what, Mismatch(f"{what}: {type(error).__name__}: {error}", getattr(error, "worst", None)))
        else:
            served += 1

    run_examples(st.tuples(cases(ctx.spec, ctx.seed), st.sampled_from(LAYOUTS)), _seed(ctx), SHAPES, test)
    if not served:
        raise refused
    return found


def _named(ctx: Context, args: list[Any]) -> list[tuple[str, Any]]:
    return list(zip(ctx.spec.arguments, args, strict=True))


# ---- any arguments


def _declared_problem(spec: OpSpec, args: list[Any]) -> str | None:
    """What the declaration says is wrong, which is all that may be refused. Meta tensors have no contents."""
    try:
        (spec.check if any(isinstance(a, Tensor) and a.is_meta for a in args) else spec.check_contents)(args)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _wrong_dtype(spec: OpSpec, a: dict[str, Any], mode: str) -> str | None:
    """A tensor of a dtype that a public call must refuse; under autocast, which casts floats, fewer are wrong."""
    tensors = {n: a[n] for n in spec.inputs if isinstance(a[n], Tensor)}
    if any(n not in tensors and (a[n] is not None or n not in spec.optional) for n in spec.inputs):
        return None  # lif_scan, for one, takes a number for a tensor
    cast = [n for n in spec.autocast if n in tensors] if mode == "autocast" else []
    if all(tensors[n].dtype in CASTABLE for n in cast):
        tensors |= {n: tensors[n].bfloat16() for n in cast}
    known = a | tensors
    wrong = [n for n, t in tensors.items() if t.dtype not in spec.accepted_dtypes(n, known)]
    return f"{wrong[0]} is {tensors[wrong[0]].dtype}" if wrong else None


def _public_arguments(spec: OpSpec, a: dict[str, Any]) -> dict[str, Any]:
    """The same by the parameters of the public function, where a number may be a tensor; defaults are left out."""
    parameters = inspect.signature(getattr(ops, spec.name)).parameters
    usual = {n for n, p in spec.attributes.items() if type(a[n]) is type(p.default) and a[n] == p.default}
    known = {n: a[n] for n in parameters if n in a and n not in usual}
    known |= {n: a[f"{n}_tensor"] for n in parameters if a.get(f"{n}_tensor") is not None}
    dtypes = [n for n in known if "torch.dtype" in parameters[n].annotation and isinstance(known[n], str)]
    return known | {n: getattr(torch, known[n], known[n]) for n in dtypes}


def _call_publicly(spec: OpSpec, a: dict[str, Any], grad: bool) -> None:
    """Through the public function; where gradients are recorded, those of floats are asked for."""
    leaves = [a[n] for n in spec.differentiable if grad and isinstance(a[n], Tensor) and a[n].is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    results = getattr(ops, spec.name)(**_public_arguments(spec, a))
    outputs = results if isinstance(results, tuple) else (results,)
    smooth = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    if smooth:
        torch.autograd.grad([t.sum() for t in smooth], leaves, allow_unused=True)


def _mode(call: Call, device: str) -> contextlib.AbstractContextManager[Any]:
    """What torch is set to around a call."""
    modes: dict[str, contextlib.AbstractContextManager[Any]] = {
        "no_grad": torch.no_grad(),
        "grad": torch.enable_grad(),
        "autocast": torch.autocast(device, dtype=torch.bfloat16),
        "inference": torch.inference_mode(),
    }
    return modes[call.mode]


def _fuzz(ctx: Context, call: Call) -> None:
    try:
        spec, a = ctx.spec, call.args(ctx.spec, ctx.target.device)
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError):
        return  # a case that no inputs can be made for
    args = list(a.values())
    problem = _wrong_dtype(spec, a, call.mode) if call.public else _declared_problem(spec, args)
    with _mode(call, ctx.target.device):
        try:
            if call.public:
                _call_publicly(spec, a, torch.is_grad_enabled())
            else:
                spec.raw(*args)
        except Exception as error:
            _expect_typed(spec, call, error, problem)
        else:
            if problem is not None:
                raise Mismatch(f"accepted, but the declaration says: {problem}")


def _expect_typed(spec: OpSpec, call: Call, error: Exception, problem: str | None) -> None:
    message, kind = str(error), type(error).__name__
    if not call.public and f"{NAMESPACE}::{spec.name}() " in message and any(c.kind == "value" for c in call.changes):
        return  # torch itself refuses what is no tensor, or no number of the declared type
    if not isinstance(error, TYPED):
        raise Mismatch(f"{kind} instead of an error that callers expect: {message}") from error
    if spec.name not in message:
        raise Mismatch(f"{kind} that does not name the operator: {message}") from error
    written = [c for c in call.changes if c.argument in spec.mutates and c.kind == "strides"]
    if problem is None and not call.public and isinstance(error, (ValueError, TypeError)) and not written:
        raise Mismatch(f"refused, but the declaration accepts it: {kind}: {message}") from error


@check(
    "any arguments give a result or an error that names the operator, and what is refused is what the declaration says",
    level=3,
    applies=lambda spec, case: case is spec.cases[0],
    parts=lambda spec, case: ("0",),
)
def arguments(ctx: Context) -> None:
    from ..run.strategies import calls, run_examples

    search = _Search()

    def test(call: Call) -> None:
        what = str(call)
        if search.skips(what):
            return
        _trace(ctx, what)
        try:
            _fuzz(ctx, call)
        except Exception as error:
            search.fail(what, Mismatch(f"{what}: {error if isinstance(error, Mismatch) else repr(error)}"))

    run_examples(calls(ctx.spec), _seed(ctx), CALLS, test)
