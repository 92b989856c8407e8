"""The filters of the pages in a real browser. Skipped without one, which REQUIRE_BROWSER=1 makes a failure."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sample_reports import every_status, whole
from spikingbrain_hal.conformance.report.matrix import matrix
from spikingbrain_hal.conformance.report.page import render
from spikingbrain_hal.conformance.verdict.record import Record, Report, Status

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000"),
)
# What a reader does, one step after the other, and what the page then shows.
DRIVER = """
<script>
"use strict";
(async () => {
  const steps = %s, shown = [], errors = [];
  addEventListener("error", (event) => errors.push(event.message));
  const form = document.getElementById("filter");
  const visible = (node) => !node.closest("[hidden]");
  const all = (selector) => [...document.querySelectorAll(selector)].filter(visible);
  const text = (node) => node.textContent.trim();
  const chosen = (field) => [field.name, field.selectedIndex === -1 ? "blank" : field.value];
  for (const step of [{}, ...steps]) {
    for (const [name, value] of Object.entries(step.choose ?? {})) {
      form.elements[name].value = value;
      form.elements[name].dispatchEvent(new Event("input", {bubbles: true}));
    }
    if (step.click) document.querySelector(step.click).click();
    if (step.address !== undefined) location.hash = step.address;
    await new Promise((done) => setTimeout(done, 100));
    shown.push({
      rows: all(%s).map((row) => [...row.cells].map(text)),
      groups: all("details[data-op]").map((group) => group.dataset.op),
      open: all("details[data-op][open]").map((group) => group.dataset.op),
      says: form.querySelector("output").textContent,
      address: decodeURIComponent(location.hash),
      chosen: Object.fromEntries([...form.elements].filter((field) => field.name).map(chosen)),
      form: visible(form),
    });
  }
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify({shown, errors});
  document.body.append(result);
})();
</script>
"""


def drive(page: str, rows: str, steps: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What a page shows at first and after each step: choices in its form, a click, an address."""
    if BROWSER is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("REQUIRE_BROWSER is set, and there is no chromium")
        pytest.skip("there is no chromium: apt-get install chromium")
    driver = DRIVER % (json.dumps(steps).replace("</", "<\\/"), json.dumps(rows))
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"{driver}</body>"), encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page's script did not come to its end:\n{done.stderr[-2000:]}"
    result = json.loads(html.unescape(found[1]))
    assert result["errors"] == []
    assert len(result["shown"]) == 1 + len(steps)
    shown: list[dict[str, Any]] = result["shown"]
    return shown


def counted(found: Report, **want: Any) -> int:
    return sum(all(getattr(record, key) == value for key, value in want.items()) for record in found.records)


def test_the_filters_of_a_report(tmp_path: Path) -> None:
    found = every_status()
    hostile = "<b>&amp;</b> 100 % #+=?"
    found.records.append(
        Record("lif_scan/split[a]/int8/x", "lif_scan", "split", "a", "int8", hostile, Status.PASS, level=3)
    )
    total = len(found.records)
    steps: list[dict[str, Any]] = [
        {"choose": {"op": "attention"}},
        {"choose": {"status": "not pass"}},
        {"choose": {"text": "CRASH  values"}},
        {"choose": {"text": "no such word"}},
        {"click": "#filter button[type=reset]"},
        {"click": ".counts a[href='#status=fail']"},
        {"click": "td.name a[href='#level=3']"},
        {"click": "td.name a[href='#check=split']"},
        {"address": "op=lif_scan&dtype=int8&status=timeout"},
        {"address": "op=no+such+operator&dtype=any&nonsense=1"},
        {"address": "text=" + "%3Cb%3E%26amp%3B+100+%25+%23%2B%3D"},
        {"address": ""},
    ]
    first, *after = drive(render(found), "table.cases tbody tr", steps, tmp_path)
    assert first["form"]
    assert (len(first["rows"]), first["open"], first["says"]) == (total, [], f"{total} of {total} cases")

    op, status, text, nothing, reset, count, level, check, address, unknown, odd, empty = after
    expected = counted(found, op="attention")
    assert (len(op["rows"]), op["says"], op["open"]) == (expected, f"{expected} of {total} cases", ["attention"])
    assert (op["address"], op["groups"]) == ("#op=attention", ["attention"])
    assert len(status["rows"]) == expected - counted(found, op="attention", status=Status.PASS)
    assert status["address"] == "#op=attention&status=not+pass"
    assert [(row[4], row[7]) for row in text["rows"]] == [("crash", "killed by SIGSEGV")]
    assert (nothing["rows"], nothing["open"], nothing["says"]) == ([], [], f"0 of {total} cases")
    assert (len(reset["rows"]), reset["address"], set(reset["chosen"].values())) == (total, "#cases", {""})
    assert len(count["rows"]) == counted(found, status=Status.FAIL)
    assert count["chosen"]["status"] == "fail"
    assert (len(level["rows"]), level["chosen"]["level"]) == (counted(found, level=3), "3")
    assert level["chosen"]["status"] == "", "a link shows what it says, whatever was chosen before"
    assert [row[0] for row in check["rows"]] == ["split[a]"]
    assert len(address["rows"]) == counted(found, op="lif_scan", dtype="int8", status=Status.TIMEOUT)
    assert (len(unknown["rows"]), unknown["chosen"]["op"]) == (counted(found, dtype=""), "")
    assert [row[2] for row in odd["rows"]] == [hostile]
    assert len(empty["rows"]) == total


def test_the_filters_of_a_matrix(tmp_path: Path) -> None:
    page = matrix({"a": every_status(), "b": whole()})
    steps: list[dict[str, Any]] = [
        {"choose": {"op": "attention"}},
        {"choose": {"dtype": "float16"}},
        {"click": "#filter button[type=reset]"},
        {"choose": {"text": "LIF back"}},
    ]
    first, op, dtype, reset, text = drive(page, "table.matrix tbody tr", steps, tmp_path)
    total = len(first["rows"])
    assert first["form"]
    assert first["says"] == f"{total} of {total} rows"
    assert 1 < len(op["rows"]) < total
    assert op["says"] == f"{len(op['rows'])} of {total} rows"
    assert op["rows"][0][0] == "attention"
    assert [row[:2] for row in dtype["rows"]] == [["attention", "float16"]], "the name stands in the first row shown"
    assert len(reset["rows"]) == total
    assert [row[0] for row in text["rows"]][:1] == ["lif_scan_backward"]
