"""Every oracle beyond values rejects a kernel with the bug it is for, and accepts the references."""

from __future__ import annotations

from dataclasses import replace

import pytest
from oracle_bugs import (
    GLA,
    REJECTED,
    TESTED,
    Function,
    changed,
    flushed,
    narrow_factors,
    narrow_state,
    run,
    session,
)

from spikingbrain_hal.backend import Numerics
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.verdict.record import Status
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.testing import python_backend

pytestmark = pytest.mark.usefixtures("one_thread", "contents_are_checked")
CHECKS = (
    "directional",
    "superposition",
    "permuted",
    "broadcast",
    "related",
    "closed_form",
    "composed",
    "numerics",
    "nonfinite",
    "guard_pages",
    "random_shapes",
    "arguments",
)


@pytest.mark.parametrize("bug", REJECTED)
def test_bug_is_rejected(bug: str) -> None:
    op, function, check, part = REJECTED[bug]
    profile = "full" if check == "random_shapes" else "quick"
    records = run(python_backend("planted", {op: function}), TESTED.get(bug, op), check, part, profile)
    failed = [r for r in records if r.status == Status.FAIL]
    assert failed, f"{check} accepted: {bug}"
    assert all("Traceback" not in r.message for r in failed), failed[0].message


@pytest.mark.parametrize("op", OPERATORS)
def test_references_are_accepted(op: str) -> None:
    with session(python_backend("plain")) as running:
        items = [i for i in plan("quick", [op]) if i.op == op and i.check in CHECKS and i.check != "random_shapes"]
        records = [running.run(i) for i in items]
    assert [(r.id, r.message) for r in records if r.status != Status.PASS] == []


def test_every_operator_is_drawn_and_guarded() -> None:
    planned = {(i.op, i.check) for i in plan("quick")}
    assert {(op, check) for op in OPERATORS for check in ("guard_pages", "random_shapes", "arguments")} <= planned
    backwards = {name for name in OPERATORS if name.endswith("_backward")}
    assert {i.op for i in plan("quick") if i.check == "directional"} == backwards


# ---- declared numerics


@pytest.mark.parametrize(
    ("op", "function", "part", "numerics"),
    [
        (GLA, narrow_factors(GLA, 10), "products", Numerics(tf32=True)),
        ("lif_scan", changed("lif_scan", flushed), "denormals", Numerics(flush_to_zero=True)),
        ("lif_scan", narrow_state, "sums", Numerics(accumulate="bfloat16")),
        (GLA, OPERATORS[GLA].reference, "sums", Numerics(tf32=True)),
    ],
)
def test_what_is_declared_is_accepted(op: str, function: Function, part: str, numerics: Numerics) -> None:
    backend = replace(python_backend("declared", {op: function}), numerics=numerics)
    assert {r.status for r in run(backend, op, "numerics", part)} == {Status.PASS}


def test_worse_than_declared_is_rejected() -> None:
    backend = replace(python_backend("declared", {GLA: narrow_factors(GLA, 7)}), numerics=Numerics(tf32=True))
    (record,) = run(backend, GLA, "numerics", "products")
    assert record.status == Status.FAIL
    assert "tf32=True" in record.message
