"""``sbhal report``: show, verify, diff, badge and matrix."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from sample_reports import about, every_status, record, whole
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.conformance import report
from spikingbrain_hal.conformance.report import bundle
from spikingbrain_hal.conformance.report.badge import badge_json, badge_svg
from spikingbrain_hal.conformance.report.diff import difference
from spikingbrain_hal.conformance.report.files import to_json
from spikingbrain_hal.conformance.report.matrix import matrix
from spikingbrain_hal.conformance.report.page import column
from spikingbrain_hal.conformance.report.schema import schema
from spikingbrain_hal.conformance.verdict.mustpass import OPERATOR_SET, MustPass
from spikingbrain_hal.conformance.verdict.record import Report, Status, Timing
from spikingbrain_hal.declare.registry import OPERATORS

COMMAND = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def sbhal(*arguments: object) -> tuple[int, str]:
    done = COMMAND.invoke(app, ["report", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def saved(path: Path, found: Report) -> Path:
    path.write_bytes(to_json(found))
    return path


@pytest.mark.usefixtures("own_selection")
def test_a_real_run_from_bundle_to_badge(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--backend", "cpu", "--case", "spike_collapse/values", "--profile", "quick", "--no-bench"]
    waivers = tmp_path / "known.toml"
    waivers.write_text("# nothing is known\n")
    ran = COMMAND.invoke(app, ["conformance", *arguments, "--out", str(out), "--waivers", str(waivers)])
    assert ran.exit_code == 0, ran.output
    data = json.loads((out / "report.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(data)
    assert data["filters"] == {"op": [], "case": "spike_collapse/values"}
    assert data["builds"][0]["module"] == "spikingbrain_hal.backends.cpu._native"

    held = bundle.load(out / "bundle.tar.gz")
    assert held["waivers.toml"] == waivers.read_bytes()
    assert len(held["results.jsonl"].splitlines()) == 1 + len(data["cases"])
    code, verified = sbhal("verify", out / "bundle.tar.gz")
    assert code == 0
    assert report.verify(out).sha256 in verified
    code, shown = sbhal("show", out / "bundle.tar.gz")
    assert code == 0
    summary = ran.output[ran.output.index("operator ") : ran.output.index("json: ")]
    assert summary in shown
    assert "claim: filtered run, quick profile: no level, draft opset 1, " in shown
    assert sbhal("diff", out, out / "bundle.tar.gz")[0] == 0
    assert sbhal("badge", out, "--out", tmp_path / "badge")[0] == 0
    assert "filtered run, quick profile: no level" in (tmp_path / "badge/badge.svg").read_text()


def test_show_prints_what_was_broken_and_exits_as_the_run(tmp_path: Path) -> None:
    code, shown = sbhal("show", saved(tmp_path / "a.json", every_status()))
    assert code == 1
    for expected in (
        "toy on Toy 9, profile quick",
        "o is <wrong>",
        "| kernel <oops>",
        "sbhal conformance --case x",
        "simulated:",
        "incomplete: interrupted by SIGINT",
        "problem: two things at once",
        "and 8 more",
        "FAIL 30 cases: 3 pass, 3 fail, 3 crash",
    ):
        assert expected in shown, expected
    code, shown = sbhal("show", saved(tmp_path / "b.json", whole()))
    assert code == 0
    assert "claim: L4, draft opset 1" in shown


@pytest.mark.parametrize("command", [("show",), ("diff", "other.json"), ("badge",), ("matrix",), ("verify",)])
def test_what_cannot_be_read_is_a_sentence_and_exits_with_2(command: tuple[str, ...], tmp_path: Path) -> None:
    nonsense = {"missing.json": None, "empty.json": "", "other.json": '{"a": 1}', "x.tar.gz": "x", "folder": None}
    (tmp_path / "folder").mkdir()
    for name, text in nonsense.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        code, shown = sbhal(command[0], tmp_path / name, *(tmp_path / more for more in command[1:]))
        assert code == 2
        assert shown.startswith("error: ")
        assert shown.count("\n") == 1


def test_what_cannot_be_written_exits_with_2(tmp_path: Path) -> None:
    source, taken = saved(tmp_path / "a.json", whole()), tmp_path / "taken"
    taken.write_text("")
    assert sbhal("badge", source, "--out", taken / "x")[0] == 2
    assert sbhal("matrix", source, "--out", taken / "x.html")[0] == 2


def test_verify_names_what_was_changed(tmp_path: Path) -> None:
    report.write(whole(), tmp_path)
    assert sbhal("verify", tmp_path, "--sha256", report.verify(tmp_path).sha256)[0] == 0
    assert sbhal("verify", tmp_path, "--sha256", "0" * 64)[0] == 1
    code, shown = sbhal("verify", tmp_path, "--sha256", "")  # a variable that is not set
    assert code == 2
    assert "error: verify: sha256 is '', expected the 64 hexadecimal digits" in shown
    (tmp_path / "log.txt").write_text("")
    assert sbhal("verify", tmp_path) == (1, "log.txt was changed\n")


def test_a_report_cannot_rule_the_terminal(tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[red]"
    found = with_first(whole(), status=Status.FAIL, message=hostile, op=hostile, id=hostile, output=hostile)
    found.about |= {"profile": hostile, "torch": hostile, "interrupted": hostile}
    found.problems = [hostile]
    path = saved(tmp_path / "a.json", found)
    printed = [sbhal("show", path), sbhal("diff", path, saved(tmp_path / "b.json", whole()))]
    printed += [sbhal("badge", path, "--out", tmp_path / "badge")]
    (tmp_path / "c.json").write_text(path.read_text().replace('"seed"', json.dumps(hostile)))
    printed += [sbhal("show", tmp_path / "c.json")]
    assert [code for code, _ in printed] == [1, 1, 0, 2]
    assert not [shown for _, shown in printed if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown)]
    assert "]0;owned[2J[red]" in printed[0][1]


# ---- diff


def with_first(found: Report, **changes: Any) -> Report:
    found.records[0] = replace(found.records[0], **{"worst": 0.25, **changes})
    return found


def timed(milliseconds: float | None) -> Report:
    found = whole()
    found.timings = [Timing("attention", "c", "float32", milliseconds)]
    return found


def told(**head: Any) -> Report:
    found = whole()
    found.about |= head
    return found


CHANGES: list[tuple[Callable[[], Report], str, str]] = [
    (lambda: with_first(whole(), status=Status.FAIL), "worse", "status: pass -> fail"),
    (lambda: with_first(whole(), status=Status.WAIVED), "worse", "status: pass -> waived"),
    (lambda: with_first(whole(), worst=0.51), "worse", "worst: 0.25 -> 0.51"),
    (lambda: with_first(whole(), worst=0.12), "better", "worst: 0.25 -> 0.12"),
    (lambda: with_first(whole(), worst=0.0), "better", "worst: 0.25 -> 0"),
    (lambda: with_first(whole(), worst=None), "other", "worst: 0.25 -> none"),
    (lambda: with_first(whole(), excused=1), "worse", "excused: 0 -> 1"),
    (lambda: with_first(whole(), excluded=1), "worse", "excluded: 0 -> 1"),
    (lambda: with_first(whole(), level=3), "other", "level: 0 -> 3"),
    (lambda: with_first(whole(), waiver="A"), "other", "waiver: '' -> A"),
    (lambda: with_first(whole(), message="new"), "other", "message: '' -> new"),
    (lambda: Report(whole().about, whole().records[1:]), "only in the first", "backend/level0//pass"),
    (
        lambda: Report(whole().about, [*whole().records, record(Status.PASS, check="new")]),
        "only in the second",
        "attention/new/float32/pass",
    ),
    (lambda: told(torch="9.9"), "torch", "-> 9.9"),
    (lambda: told(packages={}), "packages.numpy", "-> none"),
    (lambda: told(environment={"SBHAL_CHECK": "0"}), "environment.SBHAL_CHECK", "-> 0"),
    (
        lambda: told(builds=[{"module": "m", "file": "m.so", "bytes": 1, "sha256": "ab", "states": {}}]),
        "builds.m.sha256",
        "none -> ab",
    ),
    (lambda: told(package={"version": "1", "commit": "c", "dirty": True}), "package.commit", "-> c"),
    (lambda: told(interrupted="Ctrl-C"), "complete", "True -> False"),
    (lambda: Report(whole().about, whole().records, problems=["odd"]), "problems", "-> ['odd']"),
    (lambda: timed(None), "", "attention/float32/c"),
]


@pytest.mark.parametrize(("make", "what", "how"), CHANGES, ids=[f"{w}-{h}" for _, w, h in CHANGES])
def test_every_change_is_told_in_both_directions(
    make: Callable[[], Report], what: str, how: str, tmp_path: Path
) -> None:
    before = timed(2.0) if how == "attention/float32/c" else whole()
    a, b = saved(tmp_path / "a.json", before), saved(tmp_path / "b.json", make())
    code, shown = sbhal("diff", a, b)
    assert code == 1
    (line,) = [line for line in shown.splitlines() if how in line and what in line]
    assert "different: " in shown
    assert line
    code, shown = sbhal("diff", b, a, "--json")
    assert code == 1
    assert json.loads(shown)["same"] is False


def test_an_improvement_is_told_as_one() -> None:
    found = difference(with_first(whole(), status=Status.FAIL), whole())
    assert [(c.what, c.verdict) for c in found.changes] == [("status", "better")]
    kinds = [Status.UNSUPPORTED, Status.CRASH]
    found = difference(*(with_first(whole(), status=s) for s in (kinds[0], Status.NOT_RUN)))
    assert [c.verdict for c in found.changes] == ["other"]
    found = difference(*(with_first(whole(), status=s) for s in kinds))
    assert [c.verdict for c in found.changes] == ["worse"]


def test_what_differs_between_any_two_runs_is_no_change(tmp_path: Path) -> None:
    later = timed(3.0)
    later.about |= {"started": "tomorrow", "seconds": 99.0, "command": "sbhal conformance --out elsewhere"}
    later.records = [replace(r, seconds=9.0, worst=0.5) for r in later.records]
    a, b = saved(tmp_path / "a.json", timed(2.0)), saved(tmp_path / "b.json", later)
    code, shown = sbhal("diff", a, b)
    assert code == 0
    assert re.search(r"attention/float32/c +│ 2 +│ 3 +│ 1\.50", shown)
    assert "within a factor of 2" in shown
    code, shown = sbhal("diff", a, b, "--factor", "1.9")
    assert code == 1
    assert f"{len(later.records)} changes (0 better, {len(later.records)} worse, 0 other)" in shown
    data = json.loads(sbhal("diff", a, b, "--json")[1])
    assert (data["same"], data["timings"]) == (True, [{"id": "attention/float32/c", "a": 2.0, "b": 3.0}])


@pytest.mark.parametrize("factor", ["0.5", "nan", "-1"])
def test_a_factor_that_means_nothing_is_refused(factor: str, tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json", whole())
    code, shown = sbhal("diff", a, a, "--factor", factor)
    assert code == 2
    assert "expected a number of at least 1" in shown


# ---- badge


def test_a_badge_carries_the_whole_claim(tmp_path: Path) -> None:
    count = len(OPERATORS)
    assert sbhal("badge", saved(tmp_path / "a.json", whole()), "--out", tmp_path / "b")[0] == 0
    message = f"L4, draft opset 1, {count} of {count} operators, no waivers"
    data = json.loads((tmp_path / "b/badge.json").read_text())
    assert data == {"schemaVersion": 1, "label": "sbhal conformance, toy", "message": message, "color": "green"}
    drawn = ElementTree.parse(tmp_path / "b/badge.svg").getroot()
    assert [t.text for t in drawn.iter("{http://www.w3.org/2000/svg}text")] == ["sbhal conformance, toy", message]
    assert drawn.get("aria-label") == f"sbhal conformance, toy: {message}"


@pytest.mark.parametrize(
    ("change", "colour"),
    [
        (lambda r: r.records.append(record(Status.FAIL)), "red"),
        (lambda r: r.problems.append("odd"), "red"),
        (lambda r: r.about["backend"].update(simulated=True), "grey"),
        (lambda r: r.about["filters"].update(case="x"), "grey"),
        (lambda r: r.about.update(profile="quick"), "grey"),
        (lambda r: r.records.append(record(Status.UNSUPPORTED)), "green"),
        (lambda r: r.records.__setitem__(-1, replace(r.records[-1], status=Status.UNSUPPORTED)), "yellow"),
        (lambda r: r.records.append(record(Status.WAIVED, "lif_scan", waiver="A")), "yellow"),
    ],
)
def test_a_badge_is_green_for_a_whole_claim_only(change: Callable[[Report], Any], colour: str) -> None:
    found = whole()
    change(found)
    assert json.loads(badge_json(found))["color"] == colour


def test_a_badge_of_a_hostile_name_is_a_picture() -> None:
    found = whole()
    found.about["backend"]["name"] = "<script>\"'&amp;"
    drawn = ElementTree.fromstring(badge_svg(found))
    assert "<script>\"'&amp;" in (drawn.get("aria-label") or "")


# ---- matrix


def test_a_matrix_has_every_backend_operator_and_dtype(tmp_path: Path) -> None:
    half = Report(about(), [record(Status.UNSUPPORTED, dtype="bfloat16"), record(Status.CRASH, "new<op>")])
    a, b = saved(tmp_path / "a.json", whole()), saved(tmp_path / "b.json", half)
    out = tmp_path / "deep/matrix.html"
    assert sbhal("matrix", a, b, "--out", out) == (0, f"{out}\n")
    page = out.read_text()
    rows = re.findall(r'<tr data-op="([^"]*)" data-dtype="([^"]*)">(.*?)</tr>', page, re.S)
    pairs = [(op, dtype) for op, dtype, _ in rows]
    expected = {(r.op, column(r.dtype)) for r in whole().records} | {("new&lt;op&gt;", "float32")}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert ("attention", "bfloat16") in pairs
    assert all(row.count("<td>") == 2 for _, _, row in rows)
    (new,) = [row for op, _, row in rows if op == "new&lt;op&gt;"]
    assert "–" in new
    assert "1 broken" in new
    assert "simulated" in page
    assert "L4, draft opset 1" in page
    assert not re.search(r"https?:|@import|url\(", page)
    assert "different operator sets" not in page


def test_a_matrix_says_that_operator_sets_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    later, listed = whole(), MustPass.load(OPERATOR_SET)
    monkeypatch.setattr(MustPass, "load", staticmethod(lambda version: listed))
    later.about["operator_set"]["version"] = 2
    assert "different operator sets, versions 1 and 2" in matrix({"a": whole(), "b": later})
    with pytest.raises(ValueError, match="at least one report"):
        matrix({})
