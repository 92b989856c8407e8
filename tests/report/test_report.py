"""What a report says, and the files that it is."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
import torch

from sample_reports import about, every_status, record, whole
from spikingbrain_hal.calls.selection import installed_backends
from spikingbrain_hal.conformance import report
from spikingbrain_hal.conformance.report import about as description
from spikingbrain_hal.conformance.report.claim import claim
from spikingbrain_hal.conformance.report.page import SHOWN_IN_FULL, render
from spikingbrain_hal.conformance.report.schema import schema
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.verdict import judge
from spikingbrain_hal.conformance.verdict.record import BACKEND, Record, Report, Status
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.testing import python_backend


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [
        ([Status.PASS], True),
        ([Status.PASS, Status.UNSUPPORTED], True),
        ([Status.PASS, Status.WAIVED], True),
        ([Status.PASS, Status.FAIL], False),
        ([Status.PASS, Status.CRASH], False),
        ([Status.PASS, Status.TIMEOUT], False),
        ([Status.PASS, Status.LIED], False),
        ([Status.PASS, Status.XPASS], False),
        ([Status.PASS, Status.NOT_RUN], True),
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
    paths = report.write(every_status(), tmp_path / "a" / "b")

    data = json.loads(paths["json"].read_text())
    jsonschema.Draft202012Validator(schema()).validate(data)
    assert data["counts"] == {s.value: 3 for s in Status}
    assert (data["passed"], data["complete"], data["format"], data["seed"]) == (False, False, 3, 7)
    assert data["cases"][1]["status"] == "fail"
    assert data["operators"][0]["dtypes"]["float16"]["worst"] == 3.0
    assert data["torch"] == torch.__version__
    assert [t["mistrusted"] for t in data["bench"]["timings"]] == [False, True, False, False]
    assert data["packages"]["jsonschema"]

    suites = ElementTree.parse(paths["junit"]).getroot()
    attributes = ("failures", "errors", "skipped")
    assert [tuple(s.get(k) for k in attributes) for s in suites] == [("3", "3", "3")] * 3 + [("0", "2", "0")]
    wrong = {c.get("name"): c.find("error").text for c in suites[-1]}  # type: ignore[union-attr]
    assert wrong == {"complete": "the run ended early: interrupted by SIGINT", "problem 1": "two things at once"}

    log = paths["log"].read_text()
    assert "    the last that it printed:\n    kernel <oops>\n    at 0x0\n" in log
    assert "problem: two things at once" in log
    environment = json.loads(paths["environment"].read_text())
    assert environment == {key: data[key] for key in environment}
    assert {"torch", "python", "platform", "packages", "builds", "package", "environment"} <= environment.keys()


def test_of_two_versions_the_one_that_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert description.packages()["pytest"] == pytest.__version__
    (tmp_path / "pytest-0.1.dist-info").mkdir()
    (tmp_path / "pytest-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pytest\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert description.packages()["pytest"] == "0.1"


def test_the_junit_file_of_a_run_that_passes_is_green(tmp_path: Path) -> None:
    paths = report.write(Report(about(), [record(Status.PASS)]), tmp_path)
    suites = ElementTree.parse(paths["junit"]).getroot()
    assert [(s.get("name"), s.get("tests"), s.get("errors")) for s in suites] == [
        ("attention", "1", "0"),
        ("run", "1", "0"),
    ]
    assert [len(case) for s in suites for case in s] == [0, 0]


def test_files_hold_whatever_a_backend_says(tmp_path: Path) -> None:
    hostile = "\ud800 \x00 \x1b[31m ]]> </script> {{ 7 * 7 }} \u2028"
    rows = [
        record(Status.FAIL, worst=math.inf, message=hostile, output=hostile),
        record(Status.CRASH, worst=math.nan, message="", reproduce=hostile),
        record(Status.NOT_RUN),
        record(Status.PASS),
    ]
    head = about()
    head["device"] |= {"name": hostile, "dtype": torch.bfloat16, "bytes": 2**70}
    paths = report.write(Report(head, rows, problems=[hostile]), tmp_path)
    data = json.loads(paths["json"].read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert [c["worst"] for c in data["cases"]] == [None] * 4
    assert data["device"]["dtype"] == "torch.bfloat16"
    assert len(ElementTree.parse(paths["junit"]).getroot()[0]) == 4
    page = paths["html"].read_text("utf-8")
    assert page.count("</script>") == 1
    assert "{{ 7 * 7 }}" in page
    assert report.read(paths["bundle"]).counts == Report(head, rows).counts


# ---- the page


class Page(HTMLParser):
    """What is on a page, tag by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows, self.unlabelled, self.headers = 0, 0, 0
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "action")]
        self.rows += tag == "tr"
        self.headers += tag == "th" and "scope" not in given
        self.unlabelled += tag in ("select", "input") and "label" not in self._open
        if tag == "label":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self._open.remove(tag)


def test_the_page_says_what_happened() -> None:
    page = render(every_status())
    for expected in (
        "FAIL",
        "o is &lt;wrong&gt;",
        "sbhal conformance --case x",
        "no kernel for it",
        "SIGSEGV",
        "kernel &lt;oops&gt;",
        "Toy 9",
        "<b>Simulated.</b>",
        "<b>Incomplete.</b> The run ended early (interrupted by SIGINT)",
        "two things at once",
        "50 %",
        "40 % to 60 %",
        "float32 products",
        '122 % <span class="tag warn">mistrusted</span>',
        "no ceiling",
        "TOY-1",
        "T-7",
        "J. Doe",
        "2030-01-31",
        "simulated, incomplete run, quick profile: no level, draft opset 1",
    ):
        assert expected in page, expected
    assert "<b>Filtered.</b>" not in page
    assert "<b>Filtered.</b>" in render(Report(about(filters={"op": ["attention"], "case": ""}), [record(Status.PASS)]))


def test_the_page_says_what_is_allowed_by_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    page = render(every_status())
    assert "working precision: 4 and 2 in float32; 2 and 1 in bfloat16 and float16; the rms" in page
    assert "within 2<sup>-14</sup> of the sum" in page
    monkeypatch.setitem(judge.MAX_RATIO, torch.float16, 3.0)
    assert "4 and 2 in float32; 2 and 1 in bfloat16; 3 and 1 in float16; the rms" in render(every_status())


def test_the_page_needs_no_network_and_no_script() -> None:
    found = every_status()
    text = render(found)
    page = Page(text)
    assert [link for link in page.links if not link.startswith("#")] == []
    assert not re.search(r"https?:|@import|url\(", text)
    assert re.search(r'<form id="filter"[^>]* hidden>', text)  # shown by the script that serves it
    cases = text[text.index('id="cases"') :]
    for r in found.records:
        assert re.search(rf"<td>{r.check}<td>{r.dtype}<td>{r.case}<td>{r.level}<td>{r.status.value}<td>", cases)
    assert cases.count("<td>crash<td>") == 3


def test_the_page_can_be_used_by_everyone() -> None:
    page = Page(render(every_status()))
    assert page.unlabelled == 0
    assert page.headers == 0
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(("broken", "limit"), [(False, 600_000), (True, 1_500_000)])
def test_the_page_of_a_full_run_stays_small(broken: bool, limit: int) -> None:
    status = Status.FAIL if broken else Status.PASS
    more = {"message": "wrong <here>\n" + "x" * 4000, "output": "y" * 4000, "reproduce": "z" * 200} if broken else {}
    rows = [
        Record(i.id, i.op, i.check, i.part, i.dtype, i.spec.cases[i.case].id, status, 0.1234, 0.5678, **more)  # type: ignore[arg-type]
        for i in plan("full")
    ]
    assert len(rows) > 3000
    text = render(Report(about(), rows))
    assert Page(text).rows > len(rows)
    assert text.count('<span class="tag bad">fail</span>') == (SHOWN_IN_FULL if broken else 0)
    assert len(text.encode()) < limit


# ---- what was run on what


def test_builds_are_the_files_that_kernels_come_from() -> None:
    cpu = installed_backends()["cpu"].backend
    assert cpu is not None
    (native,) = description.builds(cpu.load())
    from spikingbrain_hal.backends.cpu import _native

    assert native["module"] == _native.__name__
    assert native["bytes"] == Path(_native.__file__).stat().st_size
    assert native["states"]["isa"] == _native.isa
    assert "GCC" in native["toolchain"] or "clang" in native["toolchain"]
    assert re.fullmatch("[0-9a-f]{64}", native["sha256"])


def own_kernel(*args: object) -> object:
    raise NotImplementedError


def test_the_file_of_a_python_kernel_is_found_behind_its_wrapper() -> None:
    found = description.builds(python_backend("mine", {"attention": own_kernel}).load())
    files = {b["module"]: b["file"] for b in found}
    assert files[__name__] == Path(__file__).name
    assert files["spikingbrain_hal.backend.python"] == "python.py"


def test_notes_of_other_files_are_empty() -> None:
    from spikingbrain_hal.conformance.report.elf import toolchain

    for content in (
        b"",
        b"\x7fELF",
        b"\x7fELF\x02\x01" + b"\xff" * 100,
        b"MZ" + bytes(300),
        b"\x7fELF\x02\x01" + bytes(60),
    ):
        assert toolchain(content) == {}


# ---- what may be claimed


def test_a_whole_run_claims_its_level() -> None:
    count = len(OPERATORS)
    assert str(claim(whole())) == f"L4, draft opset 1, {count} of {count} operators, no waivers"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.about["backend"].update(simulated=True), "simulated: L4"),
        (lambda r: r.about.update(profile="quick"), "quick profile: L4"),
        (lambda r: r.about["filters"].update(op=["attention"]), "filtered run: no level"),
        (lambda r: r.about["filters"].update(case="x"), "filtered run: no level"),
        (lambda r: r.about.update(interrupted="Ctrl-C"), "incomplete run: no level"),
        (lambda r: r.problems.append("no device"), "no level"),
        (lambda r: r.records.append(record(Status.NOT_RUN)), "L4"),
        (lambda r: r.records.append(record(Status.FAIL, level=3)), "L2"),
        (lambda r: r.records.append(record(Status.XPASS, level=0)), "no level"),
        (lambda r: r.records.append(record(Status.UNSUPPORTED, level=2)), "L4"),
        (lambda r: r.records.__setitem__(slice(None), [x for x in r.records if x.op != BACKEND]), "no level"),
        (lambda r: r.records.append(record(Status.WAIVED, level=2, waiver="A-1")), "L4"),
    ],
)
def test_a_claim_never_outruns_the_run(change: object, said: str) -> None:
    found = whole()
    change(found)  # type: ignore[operator]
    assert str(claim(found)).startswith(f"{said}, draft opset 1, "), str(claim(found))


def test_the_denominator_is_the_operator_set() -> None:
    count = len(OPERATORS)
    few = Report(about(), [record(Status.PASS), record(Status.PASS, BACKEND), record(Status.PASS, "not_one_of_ours")])
    assert f"0 of {count} operators" in str(claim(few))
    waived = Report(about(), [*whole().records, *[record(Status.WAIVED, waiver="A-1")] * 2])
    assert f"{count - 1} of {count} operators, 1 waiver" in str(claim(waived))
