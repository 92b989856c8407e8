"""Whole runs in worker processes, and plans."""

from __future__ import annotations

from typing import Any

import pytest

from spikingbrain_hal.conformance.run import runner
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.run.child import Child, Gone
from spikingbrain_hal.conformance.run.settings import Settings
from spikingbrain_hal.conformance.verdict.record import Status
from spikingbrain_hal.declare.registry import OPERATORS


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


def test_a_worker_that_dies_as_it_is_ready_costs_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [i for i in plan("quick", ["spike_expand"]) if i.check == "values"]
    problems: list[str] = []
    with runner.Run(Settings("cpu", jobs=1)) as running:
        running.complain = problems.append
        listen, killed = running._children.listen, []

        def die_when_ready(seconds: float) -> list[tuple[Child, Any]]:
            heard = listen(seconds)
            for child, message in heard[:1]:
                if message == ("ready", None) and not killed:
                    killed.append(child)
                    child.close()
                    heard.append((child, Gone("it was killed")))
            return heard

        monkeypatch.setattr(running._children, "listen", die_when_ready)
        running.finish(items)
        assert [r.status for r in running.results(items, "")] == [Status.PASS] * len(items)
    assert len(killed) == len(problems) == 1
    assert "it was killed" in problems[0]


def test_one_worker_describes_and_all_run() -> None:
    problems: list[str] = []
    items = [i for i in plan("quick", ["spike_expand", "spike_collapse"]) if i.check in ("values", "repeated")]
    with runner.Run(Settings("cpu", jobs=3)) as running:
        running.complain = problems.append
        running.start()
        opened, about = running.describe(profile="quick", seed=0, command="")
        assert (opened.name, about["profile"]) == ("cpu", "quick")
        assert [w.owes for w in running._workers if w.base] == [False] * sum(bool(w.base) for w in running._workers)
        running.finish(items)
        records = running.results(items, "")
    assert problems == []
    assert {r.status for r in records} == {Status.PASS}


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
