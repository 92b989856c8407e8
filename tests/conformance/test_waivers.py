"""Waivers excuse the failure they describe and nothing else, and a file that says anything unclear is refused."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from checkout import ROOT
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.run.target import Opened
from spikingbrain_hal.conformance.verdict.levels import standing
from spikingbrain_hal.conformance.verdict.record import BROKEN, Record, Report, Status
from spikingbrain_hal.conformance.verdict.waivers import File, Waivers, in_range, load

COMMAND = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
TODAY = datetime.date(2027, 3, 31)
DEVICE = {"name": "Acme X1 Pro", "driver": "2.3.10"}
IDS = {i.id: i.level for i in plan("full", opened=Opened("acme", "cpu", ("attention",)))}
CASE = next(i for i in IDS if i.startswith("attention/strides[sliced]/float16"))
SOUND: dict[str, Any] = {
    "id": "one",
    "cases": [CASE],
    "backend": "acme",
    "device": "Acme X1*",
    "driver": ">=2.1, <2.4",
    "kind": "defect",
    "status": "fail",
    "max_error": 3.0,
    "message": "o differs",
    "issue": "https://example.invalid/1",
    "owner": "someone",
    "expires": TODAY,
}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    """The file of these waivers; a key whose value is None is left out."""
    lines = []
    for entry in entries:
        lines.append("[[waiver]]")
        for key, value in entry.items():
            if value is not None:
                text = value.isoformat() if isinstance(value, datetime.date) else json.dumps(value)
                lines.append(f"{key} = {text}")
    (path / "waivers.toml").write_text("\n".join(lines))
    return path / "waivers.toml"


def read(path: Path, *entries: dict[str, Any], backend: str = "acme", device: dict[str, Any] = DEVICE) -> Waivers:
    return load(File.read(write(path, *entries)), backend, device, IDS)


def record(status: Status, worst: float | None = 2.0, message: str = "o differs by a lot", case: str = CASE) -> Record:
    return Record(case, "attention", "strides", "sliced", "float16", "x", status, worst=worst, message=message, level=3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (record(Status.FAIL), Status.WAIVED),
        (record(Status.FAIL, worst=3.0), Status.WAIVED),
        (record(Status.FAIL, worst=3.1), Status.FAIL),
        (record(Status.FAIL, worst=float("nan")), Status.FAIL),
        (record(Status.FAIL, worst=None), Status.FAIL),
        (record(Status.FAIL, message="lse differs"), Status.FAIL),
        (record(Status.CRASH), Status.CRASH),
        (record(Status.UNSUPPORTED), Status.FAIL),
        (record(Status.PASS), Status.XPASS),
        (record(Status.NOT_RUN), Status.NOT_RUN),
    ],
)
def test_only_the_failure_described_is_waived(given: Record, expected: Status, tmp_path: Path) -> None:
    found = read(tmp_path, SOUND).judge(given, TODAY)
    assert found.status == expected
    assert found.waiver == ("one" if expected != Status.NOT_RUN else "")
    assert found.broken == (expected in BROKEN)
    if expected in (Status.FAIL, Status.CRASH):
        assert "not waived by one: it expects" in found.message
        assert given.message in found.message


def test_other_cases_are_left_alone(tmp_path: Path) -> None:
    other = record(Status.FAIL, case=CASE.replace("sliced", "stepped"))
    assert read(tmp_path, SOUND).judge(other, TODAY) is other


@pytest.mark.parametrize("status", [Status.FAIL, Status.CRASH, Status.PASS])
def test_an_expired_waiver_fails(status: Status, tmp_path: Path) -> None:
    found = read(tmp_path, SOUND).judge(record(status), TODAY + datetime.timedelta(days=1))
    assert found.broken
    assert status == Status.PASS or "not waived by one: it expired on 2027-03-31" in found.message


def test_what_is_not_yet_served_can_be_waived_until_it_is(tmp_path: Path) -> None:
    later = SOUND | {"kind": "unsupported", "status": "unsupported", "max_error": None, "message": "no kernel"}
    waivers = read(tmp_path, later)
    assert waivers.judge(record(Status.UNSUPPORTED, message="no kernel yet"), TODAY).status == Status.WAIVED
    assert waivers.judge(record(Status.PASS), TODAY).status == Status.XPASS
    expired = waivers.judge(record(Status.UNSUPPORTED, message="no kernel"), TODAY + datetime.timedelta(days=1))
    assert expired.status == Status.FAIL


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("other", DEVICE),
        ("acme", DEVICE | {"name": "Acme X2"}),
        ("acme", DEVICE | {"driver": "2.4"}),
        ("acme", DEVICE | {"driver": "2.0.99"}),
    ],
)
def test_a_waiver_holds_for_its_device_and_driver_only(backend: str, device: dict[str, Any], tmp_path: Path) -> None:
    waivers = read(tmp_path, SOUND, backend=backend, device=device)
    assert waivers.judge(record(Status.FAIL), TODAY).status == Status.FAIL
    assert (waivers.about["count"], waivers.about["used"]) == (1, 0)


@pytest.mark.parametrize(
    ("version", "ranges", "holds"),
    [
        ("2.10", ">2.9", True),
        ("2.10", "==2.10.0", True),
        ("550.54.15", ">=550, <551", True),
        ("550.54.15", ">= 550.54.16", False),
        ("v3.1-rc2", "<=3.1", False),
        ("1", "any", True),
    ],
)
def test_versions_are_compared_number_by_number(version: str, ranges: str, holds: bool) -> None:
    assert in_range(version, ranges) is holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"until": "x"}, "there is no key 'until'"),
        ({"owner": None}, "owner is missing"),
        ({"issue": " "}, "issue is ' ', expected text"),
        ({"cases": "attention/*"}, "cases is 'attention/*', expected a list"),
        ({"cases": []}, "expected a list of patterns"),
        ({"cases": ["atention/*"]}, "'atention/*' matches no case"),
        ({"cases": ["*/manifest"]}, "backend/manifest is of level 0"),
        ({"cases": ["*"]}, "never waived"),
        ({"expires": "2027-03-31"}, "expected a date such as 2027-01-31, without quotes"),
        ({"kind": "bug"}, "kind is 'bug', expected unsupported or defect"),
        ({"status": "unsupported"}, "status is 'unsupported', expected fail or crash"),
        ({"status": "pass"}, "status is 'pass'"),
        ({"max_error": 0.5}, "max_error is 0.5, expected a number greater than 1"),
        ({"max_error": True}, "max_error is True"),
        ({"status": "crash"}, "max_error is for cases that fail, not for crash"),
        ({"max_error": None, "message": None}, "how the cases fail is missing"),
        ({"driver": "2.x"}, "driver is '2.x', expected \"any\" or ranges"),
    ],
)
def test_an_unclear_waiver_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read(tmp_path, SOUND | change)
    assert "waivers.toml: number 1 (one)" in str(error.value)


def test_an_unclear_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another waiver has this id"):
        read(tmp_path, SOUND, SOUND)
    with pytest.raises(ValueError, match="the waivers one and two both cover attention/strides"):
        read(tmp_path, SOUND, SOUND | {"id": "two", "cases": ["attention/*"]})
    with pytest.raises(ValueError, match="the device names no driver"):
        read(tmp_path, SOUND, device={"name": "Acme X1"})
    with pytest.raises(ValueError, match="No such file"):
        File.read(tmp_path / "none.toml")
    for text, message in (
        ("a = ", "Invalid"),
        ("[waiver]\nid = 1", "expected nothing but"),
        ("x = 1", "nothing but"),
        ("waiver = [1]", "nothing but"),
    ):
        (tmp_path / "waivers.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(File.read(tmp_path / "waivers.toml"), "acme", DEVICE, IDS)


def test_the_page_has_a_sound_example_and_every_key(tmp_path: Path) -> None:
    page = (ROOT / "docs/waivers.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "waivers.toml").write_text(example)
    (waiver,) = load(File.read(tmp_path / "waivers.toml"), "acme", DEVICE, IDS).those
    assert waiver.id == "acme-half-state"
    keys = {key for row in re.findall(r"^\| (`.*?`) \|", page, re.M) for key in re.findall(r"`(\w+)`", row)}
    assert keys == set(SOUND)


def test_waivers_count_in_a_report_and_take_the_operator_out() -> None:
    whole = Report({}, [record(Status.PASS), record(Status.WAIVED, case="other")])
    assert whole.passed
    assert not Report({}, [record(Status.PASS), record(Status.XPASS, case="other")]).passed
    waived = Record(CASE, "attention", "strides", "", "float16", "x", Status.WAIVED, waiver="one")
    assert standing(Report({}, [waived])).waivers == ("one",)


def test_a_run_with_waivers(tmp_path: Path) -> None:
    """One case crashes as its waiver says, and one passes though another waiver says that it crashes."""
    cases = ["spike_encode/values/float32/scalar-K33", "spike_encode/values/float32/4-K128"]
    common = SOUND | {"backend": "hostile", "device": "*", "driver": "any", "status": "crash", "max_error": None}
    entries = [common | {"id": f"w{i}", "cases": [case], "message": "SIGABRT"} for i, case in enumerate(cases)]
    entries = [entry | {"expires": datetime.date.today()} for entry in entries]
    path = write(tmp_path, *entries)
    arguments = ["--backend", "hostile", "--import", "hostile_backend", "--case", "spike_encode/values/float32"]
    arguments += ["--waivers", str(path), "--no-bench", "--jobs", "1", "--out", str(tmp_path)]
    done = COMMAND.invoke(app, ["conformance", *arguments])
    assert done.exit_code == 1, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    found = {c["id"]: c for c in report["cases"]}
    assert [(found[c]["status"], found[c]["waiver"]) for c in cases] == [("waived", "w0"), ("xpass", "w1")]
    assert found[cases[1]]["reproduce"]
    assert report["counts"]["pass"] == len(found) - 2
    assert report["waivers"]["used"] == 2
    journal = (tmp_path / "results.jsonl").read_text()
    assert '"status": "crash"' in journal, "the journal has what happened, not what was made of it"
    assert "waived" not in journal.partition("\n")[2]
