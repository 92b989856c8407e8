"""What a report says, and the files that it is."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from spikingbrain_hal.backend import Backend, DeviceProperties
from spikingbrain_hal.conformance import report
from spikingbrain_hal.conformance.record import Record, Report, Status, Timing


def record(status: Status, op: str = "attention", dtype: str = "float32", **more: object) -> Record:
    return Record(f"{op}/values/{dtype}/{status.value}", op, "values", "", dtype, "case", status, **more)  # type: ignore[arg-type]


def about() -> dict[str, object]:
    backend = Backend(
        "toy", "a toy maker", "cpu", lambda: None, dict, lambda: DeviceProperties("Toy 9", {"cores": 3}), simulated=True
    )
    return report.describe(backend, "quick", 7, "sbhal conformance") | {"started": "today", "seconds": 1.5}


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [
        ([Status.PASS], True),
        ([Status.PASS, Status.UNSUPPORTED], True),
        ([Status.PASS, Status.FAIL], False),
        ([Status.PASS, Status.CRASH], False),
        ([Status.PASS, Status.TIMEOUT], False),
        ([Status.PASS, Status.LIED], False),
        ([Status.UNSUPPORTED], False),
        ([], False),
    ],
)
def test_a_run_passes_only_if_something_passed_and_nothing_is_broken(statuses: list[Status], passed: bool) -> None:
    assert Report(about(), [record(s) for s in statuses]).passed is passed


def test_a_problem_fails_a_run() -> None:
    assert not Report(about(), [record(Status.PASS)], problems=["two things at once"]).passed


def test_an_operator_is_whole_only_if_every_case_passed() -> None:
    rows = [record(Status.PASS), record(Status.UNSUPPORTED, dtype="bfloat16"), record(Status.UNSUPPORTED, "lif_scan")]
    verdicts = {s.op: s.verdict for s in Report(about(), rows).operators()}
    assert verdicts == {"attention": "partial", "lif_scan": "unsupported"}


def test_the_files_of_a_report(tmp_path: Path) -> None:
    rows = [
        record(Status.PASS, worst=0.25),
        record(Status.FAIL, dtype="float16", worst=3.0, message="o is <wrong>", reproduce="sbhal conformance --case x"),
        record(Status.CRASH, "lif_scan", message="the process was killed by SIGSEGV"),
        record(Status.UNSUPPORTED, "spike_encode", message="no kernel for it"),
    ]
    timings = [
        Timing("attention", "case", "float32", 2.0, 40.0, 3.0, 0.5, "compute"),
        Timing("lif_scan", "c", "float32"),
    ]
    whole = Report(about(), rows, {"flops_per_s": 1e11, "bytes_per_s": 2e10}, timings)
    paths = report.write(whole, tmp_path / "a" / "b")

    data = json.loads(paths["json"].read_text())
    assert data["counts"] == {s.value: int(s.value in ("pass", "fail", "crash", "unsupported")) for s in Status}
    assert (data["passed"], data["format"], data["seed"], data["backend"]["simulated"]) == (False, 1, 7, True)
    assert data["cases"][1]["status"] == "fail"
    assert data["operators"][0]["dtypes"]["float16"]["worst"] == 3.0
    assert data["torch"] == torch.__version__

    suites = ElementTree.parse(paths["junit"]).getroot()
    attributes = ("failures", "errors", "skipped")
    assert [tuple(s.get(k) for k in attributes) for s in suites] == [("1", "0", "0"), ("0", "1", "0"), ("0", "0", "1")]

    page = paths["html"].read_text()
    for expected in (
        "FAIL",
        "o is &lt;wrong&gt;",
        "sbhal conformance --case x",
        "no kernel for it",
        "SIGSEGV",
        "Toy 9",
    ):
        assert expected in page
    assert "Simulated." in page
    assert "50 %" in page
    assert "http" not in page
