"""Statuses that are no verdict on numbers: what a backend refuses, and where it says one thing and does another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import oracle_bugs
import pytest
import torch
from oracle_bugs import session, with_kernel

from seeds import SEED
from spikingbrain_hal.backend import Kernel
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.run.suite import problems_of
from spikingbrain_hal.conformance.verdict.judge import Judgement, Mismatch, every
from spikingbrain_hal.conformance.verdict.record import Record, Status
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.errors import UnsupportedOp
from spikingbrain_hal.testing import assert_matches, make_inputs, python_backend

pytestmark = pytest.mark.usefixtures("one_thread")
run = partial(oracle_bugs.run, seed=SEED)


@pytest.mark.parametrize("op", OPERATORS)
def test_references_as_a_backend_pass(op: str) -> None:
    applicable = {item.check for item in plan("quick", [op]) if item.op == op}
    for check in {"refuses", "padding", *(["opcheck"] if op.endswith("_backward") else [])} & applicable:
        assert [r.message for r in run(python_backend("plain"), op, check) if r.status != Status.PASS] == []


def test_a_plan_that_says_yes_where_the_launch_says_no_has_lied() -> None:
    def refuses_late(kernel: Kernel) -> Kernel:
        def launch(*args: Any) -> None:
            raise UnsupportedOp("not today")

        return kernel._replace(launch=launch)

    for check in ("values", "poisoned"):
        assert {r.status for r in run(with_kernel("attention", refuses_late), "attention", check)} == {Status.LIED}


def test_a_plan_that_says_no_is_unsupported_with_its_reason() -> None:
    def refuses(kernel: Kernel) -> Kernel:
        def plan(*args: Any) -> int:
            raise UnsupportedOp("no bfloat16 here")

        return kernel._replace(plan=plan, launch=plan)

    records = run(with_kernel("attention", refuses), "attention", "values")
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    assert "no bfloat16 here" in records[0].message


def test_an_outdated_kernel_is_unsupported_with_its_reason() -> None:
    records = run(with_kernel("attention", lambda k: k._replace(version=0)), "attention", "values")
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    assert "version 0" in records[0].message


def refuse(*args: Any) -> Any:
    raise UnsupportedOp("not today")


def test_what_only_the_preferred_entry_serves_has_lied() -> None:
    """A launch that refuses all of it would keep each check of memory from ever running."""

    def at_once_only(kernel: Kernel) -> Kernel:
        def at_once(*args: Any) -> None:
            *rest, stream, threads = args
            kernel.launch(*rest, None, stream, threads)

        return kernel._replace(plan=refuse, launch=refuse, run=at_once)

    backend = with_kernel("spike_encode", at_once_only)
    assert {r.status for r in run(backend, "spike_encode", "values")} == {Status.PASS}
    for check in ("poisoned", "threads", "guard_pages"):
        assert Status.LIED in {r.status for r in run(backend, "spike_encode", check)}, check


def test_the_preferred_entry_is_held_to_poisoned_memory() -> None:
    def leaves_a_tail(kernel: Kernel) -> Kernel:
        def at_once(*args: Any) -> None:
            *rest, stream, threads = args
            whole = rest[-1].clone()
            kernel.launch(*rest[:-1], whole, None, stream, threads)
            written = whole.numel() // 2
            rest[-1].view(-1)[:written].copy_(whole.view(-1)[:written])

        return kernel._replace(run=at_once)

    records = run(with_kernel("spike_expand", leaves_a_tail), "spike_expand", "poisoned")
    assert {r.status for r in records} == {Status.FAIL}
    assert "run at once against launched" in records[0].message


@pytest.mark.parametrize("check", ["strides", "random_shapes"])
def test_strides_that_a_plan_accepts_and_a_launch_refuses(check: str) -> None:
    def contiguous_only(kernel: Kernel) -> Kernel:
        def launch(*args: Any) -> None:
            if not args[0].is_contiguous():
                raise UnsupportedOp("spike_encode: strides, sorry")
            kernel.launch(*args)

        return kernel._replace(launch=launch)

    statuses = {r.status for r in run(with_kernel("spike_encode", contiguous_only), "spike_encode", check)}
    assert Status.LIED in statuses
    assert Status.UNSUPPORTED not in statuses


def test_a_kernel_that_refuses_everything_passes_nothing_and_is_named() -> None:
    backend = with_kernel("spike_expand", lambda kernel: kernel._replace(plan=refuse, launch=refuse))
    records: list[Record] = []
    for check in ("values", "refuses", "opcheck"):
        records += run(backend, "spike_expand", check)
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    with session(backend, SEED) as running:
        opened = running.target.opened()
        records.append(running.run(arguments_of("spike_expand")))
    assert any(
        problem.startswith("the backend offers spike_expand but serves no case of it: ") and "not today" in problem
        for problem in problems_of(opened, records)
    )


def arguments_of(op: str) -> Any:
    """The check that calls which must be refused pass."""
    return next(i for i in plan("quick", [op]) if i.op == op and i.check == "arguments")


def test_sums_that_are_no_numbers_fail() -> None:
    def overflows(kernel: Kernel) -> Kernel:
        def launch(*args: Any) -> None:
            kernel.launch(*args)
            x, threshold = args[0], args[len(OPERATORS["spike_encode"].arguments) + 1]
            if x.numel() and float(x.abs().max()) > 1000:
                threshold.fill_(torch.nan)

        return kernel._replace(launch=launch)

    records = run(with_kernel("spike_encode", overflows), "spike_encode", "numerics")
    assert [r.status for r in records if "sums" in r.id] == [Status.FAIL]


# ---- several wrong outputs


def test_of_several_wrong_outputs_the_worst_is_reported() -> None:
    """A waiver that allows a small error must not cover a large one behind it."""
    spec = OPERATORS["gated_linear_attention"]
    args = make_inputs(spec, next(c for c in spec.cases if "initial_state" in c.given), seed=SEED)
    args = list((spec.bind(args) | {"return_state": True}).values()) if "return_state" in spec.attributes else args
    results = list(spec.reference(*args))
    assert_matches(spec, args, tuple(results))
    results[0] = results[0] * (1 + 1e-4)
    results[1] = results[1] * 1000 + 7
    with pytest.raises(Mismatch, match="final_state") as found:
        assert_matches(spec, args, tuple(results))
    assert found.value.worst is not None
    assert found.value.worst > 1000


def raises(error: Mismatch) -> Callable[[], Judgement]:
    def compare() -> Judgement:
        raise error

    return compare


@pytest.mark.parametrize(("worst", "expected"), [((1.5, 9.0, 2.0), 9.0), ((1.5, None, 9.0), None)])
def test_every_comparison_is_made(worst: Iterable[float | None], expected: float | None) -> None:
    assert every([lambda: Judgement(0.25), lambda: Judgement(0.5, excused=1)]) == Judgement(0.5, excused=1)
    with pytest.raises(Mismatch) as found:
        every([lambda: Judgement(0.5), *(raises(Mismatch("wrong", w)) for w in worst)])
    assert found.value.worst == expected
