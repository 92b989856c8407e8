"""Levels, the must-pass lists, and what a run shows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sample_reports import whole
from spikingbrain_hal.conformance.checks import BACKEND_CHECKS, CHECKS, promise_of
from spikingbrain_hal.conformance.report.claim import claim
from spikingbrain_hal.conformance.run.case import not_planned, plan
from spikingbrain_hal.conformance.run.target import Opened
from spikingbrain_hal.conformance.verdict import mustpass
from spikingbrain_hal.conformance.verdict.levels import LEVELS, Standing, operator_levels, reached, standing
from spikingbrain_hal.conformance.verdict.mustpass import OPERATOR_SET, MustPass
from spikingbrain_hal.conformance.verdict.record import BACKEND, Record, Report, Status
from spikingbrain_hal.declare.registry import OPERATORS

HOST = Opened("toy", "cpu", tuple(OPERATORS))
DEVICE = Opened("toy", "cuda", ("attention",))


def record(level: int, status: Status = Status.PASS, op: str = BACKEND, name: str = "") -> Record:
    return Record(name or f"{op}/{level}/{status.value}", op, "check", "", "", "", status, level=level)


# ---- what is planned


def test_every_check_has_a_level_and_a_promise() -> None:
    assert {c.level for c in BACKEND_CHECKS.values()} == {0, 1, 5}
    assert {c.level for c in CHECKS.values()} <= {2, 3, 4, 5}
    assert all(promise_of(name) for name in [*CHECKS, *BACKEND_CHECKS])
    assert not CHECKS.keys() & BACKEND_CHECKS.keys()


def test_a_level_takes_those_below_it_in() -> None:
    some = [BACKEND, "spike_encode", "spike_linear"]
    counts = [len(plan("quick", some, level=level, opened=HOST)) for level in LEVELS]
    assert counts == sorted(counts)
    for level in (0, 1, 2, 3):
        items = plan("quick", some, level=level, opened=HOST)
        assert {i.level for i in items} == set(range(level + 1))
        assert all(i.level >= 3 for i in items if i.op.endswith("_backward"))
    with pytest.raises(ValueError, match="there is no level 6"):
        plan("quick", level=6)
    with pytest.raises(ValueError, match="no profile 'fast'"):
        plan("fast")


def test_what_a_backend_cannot_show_is_not_planned_for_a_reason() -> None:
    host, device = ({i.check for i in plan("quick", [BACKEND], opened=o)} for o in (HOST, DEVICE))
    assert device - host == set(not_planned(HOST)) == {"stream_order", "events", "reason_without_device"}
    blocks = {name for name, check in BACKEND_CHECKS.items() if check.level == 5}
    assert host - device == set(not_planned(DEVICE)) == {"launch_without_memory"} | blocks
    assert all(reason.startswith("host memory") for reason in not_planned(HOST).values())
    assert {i.part for i in plan("quick", [BACKEND], opened=DEVICE)} == {"", "attention"}
    assert not any(i.op == BACKEND for i in plan("quick", ["spike_encode"], opened=HOST))


# ---- what is reached


@pytest.mark.parametrize(
    ("records", "level"),
    [
        ([], None),
        ([record(0)], 0),
        ([record(0), record(1), record(2), record(3), record(4)], 4),
        ([record(0, Status.CRASH), record(1)], None),
        ([record(0), record(1), record(1, Status.FAIL), record(2)], 0),
        ([record(0), record(1), record(2, Status.UNSUPPORTED), record(2)], 2),
        ([record(0), record(1), record(2, Status.UNSUPPORTED)], 1),
        ([record(0), record(1), record(2), record(2, Status.WAIVED)], 2),
        ([record(0), record(1), record(2), record(2, Status.XPASS)], 1),
        ([record(0), record(1), record(2), record(2, Status.NOT_RUN)], 2),
        ([record(0), record(1), record(3)], 1),
        ([record(1), record(2)], None),
    ],
)
def test_the_level_reached(records: list[Record], level: int | None) -> None:
    assert reached(records) == level


def test_operators_reach_levels_of_their_own_on_a_sound_backend() -> None:
    rows = [record(0), record(1), record(2, op="attention"), record(2, Status.FAIL, "lif_scan")]
    assert operator_levels(rows) == {"attention": 2, "lif_scan": 1}
    assert operator_levels([*rows, record(3, op="lif_scan_backward")])["lif_scan_backward"] == 3
    assert operator_levels([*rows, record(1, Status.FAIL)]) == {"attention": 0, "lif_scan": 0}


def must_pass(op: str) -> list[Record]:
    return [record(2, op=op, name=i) for i in MustPass.load(OPERATOR_SET).ids(op)]


def shown(*records: Record, **about: str) -> Standing:
    return standing(Report(about, list(records)))


def test_an_operator_counts_only_with_its_whole_list() -> None:
    backend, rows = [record(0), record(1)], must_pass("spike_encode")
    assert shown(*backend, *rows).operators == ("spike_encode",)
    assert shown(*backend, *rows).level == 2
    assert shown(*backend, *rows).of == len(OPERATORS)
    assert shown(*rows).level is None, "the whole backend was not tested"
    assert shown(*backend, *rows, interrupted="by SIGINT").level is None
    assert shown(*backend, *rows[1:]).operators == ()
    for status in (Status.UNSUPPORTED, Status.WAIVED, Status.FAIL, Status.NOT_RUN):
        assert shown(*backend, *rows[1:], record(2, status, "spike_encode", rows[0].id)).operators == ()
    assert shown(*backend, *rows, record(4, Status.FAIL, "spike_encode")).operators == ()


# ---- the lists


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of frozen lists, which is empty."""
    monkeypatch.setattr(mustpass, "__file__", str(tmp_path / "mustpass.py"))
    return tmp_path / mustpass.FOLDER


def test_a_new_case_joins_a_draft_and_fails_no_check(lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = OPERATORS["spike_expand"]
    before = MustPass.load(OPERATOR_SET).ids(spec.name)
    new = replace(spec.cases[0], sizes={"...": (7, 5)})
    monkeypatch.setattr(spec, "cases", (*spec.cases, new))
    assert f"spike_expand/values/int16/{new.id}" in {*MustPass.load(OPERATOR_SET).ids(spec.name)} - {*before}
    assert mustpass.main(["--check"]) == 0
    assert not lists.exists()


def test_a_frozen_list_stays_as_it_is(
    lists: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mustpass.main([]) == 0
    assert mustpass.main(["--check"]) == 0
    (written,) = lists.iterdir()
    plain = json.loads(written.read_text())
    assert MustPass.load(OPERATOR_SET).text() == written.read_text()
    plain["spike_encode"]["checks"]["values"] = {"float32": ["gone-K1"]}
    plain["lif_scan"]["version"] = 7
    del plain["spike_expand"]
    written.write_text(json.dumps(plain))
    for arguments in (["--check"], []):
        assert mustpass.main(arguments) == 1
        said = capsys.readouterr().out
        assert "operator set 1 is frozen and the declared cases are others: raise OPERATOR_SET" in said
        assert "gone: spike_encode/values/float32/gone-K1" in said
        assert "new: spike_encode/values/bfloat16/4-K128" in said
        assert "lif_scan has version 1, the list 7" in said
        assert "the operator spike_expand is new" in said
    assert json.loads(written.read_text()) == plain


def test_a_claim_says_whether_its_set_is_frozen(lists: Path) -> None:
    assert str(claim(whole())).startswith("L4, draft opset 1, ")
    mustpass.main([])
    assert str(claim(whole())).startswith("L4, opset 1, ")


def test_the_list_names_cases_that_are_run() -> None:
    listed = MustPass.load(OPERATOR_SET)
    ids = [i for op in listed.operators for i in listed.ids(op)]
    assert len(set(ids)) == len(ids) > 400
    assert set(ids) <= {i.id for i in plan("quick")}
    assert {i.id for i in plan("quick", level=2)} <= set(ids)
    assert set(listed.operators) == set(OPERATORS)


def test_the_list_is_a_command() -> None:
    command = [sys.executable, "-m", "spikingbrain_hal.conformance.verdict.mustpass", "--help"]
    assert "--check" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
