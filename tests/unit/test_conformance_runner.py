"""Whole runs in worker processes, plans, and the performance section."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sample_reports import about, record

from spikingbrain_hal.conformance import runner, suite
from spikingbrain_hal.conformance.bench import run_bench
from spikingbrain_hal.conformance.case import plan
from spikingbrain_hal.conformance.record import Report, Status, Timing
from spikingbrain_hal.conformance.settings import Settings
from spikingbrain_hal.registry import OPERATORS


def test_a_backend_that_cannot_be_opened_says_why() -> None:
    with pytest.raises(runner.Unavailable, match="there is no backend 'no such backend'"):
        runner.run(plan("quick", ["spike_encode"])[:1], Settings("no such backend"))


def test_records_keep_the_order_of_the_plan() -> None:
    items = [i for i in plan("quick", ["spike_expand", "spike_collapse"]) if i.check in ("values", "repeated")]
    records = runner.run(items, Settings("cpu", jobs=2))
    assert [r.id for r in records] == [i.id for i in items]
    assert {r.status for r in records} == {Status.PASS}


def test_the_same_seed_gives_the_same_worst_errors() -> None:
    items = [i for i in plan("quick", ["spike_encode"]) if i.check == "values"]
    first, again, other = (
        {r.id: (r.worst, r.status, r.message) for r in runner.run(items, Settings("cpu", seed=seed))}
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


# ---- plans


def test_plans_cover_every_operator_and_dtype() -> None:
    full = plan("full")
    assert len(full) >= 300
    assert len({i.id for i in full}) == len(full)
    assert {i.op for i in full} == set(OPERATORS)
    assert {i.id for i in plan("quick")} <= {i.id for i in full}
    for op in ("attention", "gated_linear_attention_backward", "lif_scan"):
        assert {i.dtype for i in full if i.op == op} == {"float32", "bfloat16", "float16"}


def test_a_plan_that_would_run_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be run"):
        plan("full", pattern="no such case")
    with pytest.raises(ValueError, match="no operator 'atention'"):
        plan("full", ["atention"])


def test_a_pattern_finds_the_case_of_a_reproducer() -> None:
    item = plan("full", ["attention"])[17]
    assert [i.id for i in plan("quick", pattern=item.id)] == [item.id]
    assert {i.check for i in plan("quick", pattern="attention/val*float16")} == {"values"}


# ---- performance


@contextmanager
def silent(what: str, count: int) -> Iterator[Callable[[str, bool], None]]:
    yield lambda op, broken: None


TIMED = ("spike_encode", "gated_linear_attention_step_")


def test_benchmarks_measure_the_roofline_and_every_case() -> None:
    seen: list[Timing] = []
    problems: list[str] = []
    roofline, timings = run_bench(Settings("cpu"), 1, TIMED, seen.append, problems.append)
    assert problems == []
    assert roofline["flops_per_s"] > 1e8
    assert roofline["bytes_per_s"] > 1e8
    assert [t.milliseconds for t in seen] == [t.milliseconds for t in timings]
    assert {t.op for t in timings} == set(TIMED)
    assert all(t.milliseconds and t.share and t.share > 0 for t in timings)


@pytest.mark.parametrize(
    ("op", "timeout", "why", "printed"),
    [
        ("spike_collapse", 100.0, "the process was killed by SIGABRT", "Fatal Python error: Aborted"),
        ("lif_scan", 100.0, "the process ended with exit code 1", "the device fell off the bus"),
        ("lif_scan", 0.0, "no answer within 0 s; --timeout allows more", ""),
    ],
)
def test_benchmarks_that_end_early_are_a_problem(op: str, timeout: float, why: str, printed: str) -> None:
    settings = Settings("dies_when_timed", modules=("hostile_backend",), timeout=timeout)
    found = Report(about(), [record(Status.PASS)])
    assert found.passed
    suite._time(found, suite.Options(settings.backend, 0, ops=[op]), settings, silent)
    assert not found.passed
    assert found.roofline == {}
    assert {t.message for t in found.timings} == {f"not timed: {why}"}
    (problem,) = found.problems
    assert problem.startswith(f"the performance section ended after 0 of {len(found.timings)} benchmarks: {why}")
    assert printed in problem


def test_benchmarks_that_are_not_supported_are_no_problem() -> None:
    settings = Settings("dies_when_timed", modules=("hostile_backend",))
    found = Report(about(), [record(Status.PASS)])
    suite._time(found, suite.Options(settings.backend, 0, ops=["spike_encode"]), settings, silent)
    assert found.passed
    assert [t.message for t in found.timings] == ["not today"]
