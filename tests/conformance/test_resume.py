"""A run that is interrupted, in whatever way, leaves what it has and can be continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spikingbrain_hal.cli.app import app
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.run.journal import NAME, Journal, differences
from spikingbrain_hal.conformance.run.suite import Options, _journal, _report_of_nothing
from spikingbrain_hal.conformance.run.worker import blank
from spikingbrain_hal.conformance.verdict.record import Record, Status

COMMAND = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
SLOW = ("--backend", "slow", "--import", "hostile_backend", "--op", "spike_encode", "--case", "spike_encode/values")
RUN = (*SLOW, "--profile", "quick", "--seed", "5")
PATIENCE = 200.0


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spikingbrain_hal", "conformance", "--jobs", "1", "--no-bench", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def lines(folder: Path) -> list[str]:
    return (folder / NAME).read_text().splitlines() if (folder / NAME).exists() else []


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def stop_after(process: subprocess.Popen[str], folder: Path, more: int, number: int) -> list[int]:
    """Sends the signal once some more records are there; returns the processes that the run had started."""
    enough = len(lines(folder)) + more
    wait_for(lambda: len(lines(folder)) >= enough, process)
    started = children(process.pid)
    assert started
    process.send_signal(number)
    return started


def test_a_run_killed_and_interrupted_again_and_again_is_continued_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    run = start(*RUN, "--out", folder)
    workers = stop_after(run, folder, 6, signal.SIGKILL)
    run.communicate()
    wait_for(lambda: gone(workers))
    assert not (folder / "report.json").exists()
    known = len(lines(folder))
    with (folder / NAME).open("a") as file:
        file.write('{"id": "spike_encode/val')  # as if it had been killed while it wrote

    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        run = start("--resume", folder)
        workers = stop_after(run, folder, 4, number)
        output = run.communicate()[0]
        assert run.returncode == code, output
        wait_for(lambda pids=workers: gone(pids))  # type: ignore[misc]
        report = json.loads((folder / "report.json").read_text())
        assert not report["complete"]
        assert not report["passed"]
        assert report["interrupted"] == f"interrupted by {number.name}"
        assert report["counts"]["not_run"] == len(report["cases"]) - report["counts"]["pass"] > 0
        assert "incomplete" in output
        assert (folder / "report.html").exists()
        assert len(lines(folder)) >= known + 4
        known = len(lines(folder))

    run = start("--resume", folder)
    output = run.communicate()[0]
    assert run.returncode == 0, output
    report = json.loads((folder / "report.json").read_text())
    assert report["complete"]
    assert report["passed"]
    assert report["seed"] == 5
    assert report["resumed"] == known - 1
    ids = [json.loads(line)["id"] for line in lines(folder)[1:]]
    assert sorted(ids) == sorted(c["id"] for c in report["cases"])
    assert len(set(ids)) == len(ids)


# ---- what cannot be continued


def write_journal(folder: Path, **about: Any) -> None:
    with Journal.begin(folder, {"backend": "slow", "seed": 5, "ops": ["spike_encode"]}, about) as journal:
        journal.add(Record("a/b", "a", "b", "", "float32", "c", Status.CRASH, worst=float("nan"), output="\n\x00é"))
        journal.add_problem("something leaks")


def test_a_journal_gives_back_what_was_put_in(tmp_path: Path) -> None:
    write_journal(tmp_path, torch="2.13")
    found = Journal.resume(tmp_path)
    assert found.about == {"torch": "2.13"}
    assert found.problems == ["something leaks"]
    record = found.records["a/b"]
    assert (record.status, record.output, str(record.worst)) == (Status.CRASH, "\n\x00é", "nan")


def test_a_crash_that_was_to_be_tried_alone_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Journal.add_suspect

    def write_and_interrupt(journal: Journal, suspect: Record) -> None:
        write(journal, suspect)
        raise KeyboardInterrupt("interrupted by a test")

    monkeypatch.setattr(Journal, "add_suspect", write_and_interrupt)
    cases = ["--op", "spike_encode", "--op", "spike_quantize", "--case", "spike_*e/values/float32/*-K33"]
    arguments = ["--backend", "damaging", "--import", "hostile_backend", *cases, "--profile", "quick", "--no-bench"]
    done = COMMAND.invoke(app, ["conformance", *arguments, "--jobs", "1", "--out", str(tmp_path)])
    before = {c["op"]: c for c in json.loads((tmp_path / "report.json").read_text())["cases"]}
    assert before["spike_quantize"]["status"] == "crash", done.output
    monkeypatch.undo()

    done = COMMAND.invoke(app, ["conformance", "--resume", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 1, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    after = {c["op"]: c for c in report["cases"]}
    assert report["complete"]
    assert (after["spike_encode"]["status"], after["spike_quantize"]["status"]) == ("pass", "crash")
    assert after["spike_quantize"]["message"].startswith(before["spike_quantize"]["message"])
    assert "alone in a new process it ends with pass" in after["spike_quantize"]["message"]


def test_whatever_a_device_says_of_itself_a_run_is_continued(tmp_path: Path) -> None:
    arguments = ["--backend", "detailed", "--import", "hostile_backend", "--case", "manifest"]
    done = COMMAND.invoke(app, ["conformance", *arguments, "--jobs", "1", "--out", str(tmp_path)])
    assert "the device's details are no plain data" in (tmp_path / "log.txt").read_text(), done.output
    done = COMMAND.invoke(app, ["conformance", "--resume", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 1, done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["resumed"] == len(report["cases"]) == 1
    assert [report["device"][key] for key in ("dtype", "grid", "peak")] == ["torch.float32", [1, 2], None]


def test_what_an_earlier_run_found_is_said_of_a_backend_that_opens_no_more(tmp_path: Path) -> None:
    first, second, third = plan("quick", ["spike_encode"])[:3]
    with Journal.begin(tmp_path, {}, {}) as journal:
        journal.add_problem("something leaks")
        journal.add(replace(blank(first), status=Status.PASS))
        journal.add_suspect(replace(blank(second), status=Status.CRASH))
    with Journal.resume(tmp_path) as earlier:
        head = {"profile": "quick", "seed": 5, "command": ""}
        found = _report_of_nothing(Options("slow", 5), [first, second, third], head, earlier, "it does not open")
    assert [r.status for r in found.records] == [Status.PASS, Status.CRASH, Status.NOT_RUN]
    assert found.problems == ["something leaks", "it does not open"]


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    with Journal.begin(tmp_path, {}, {}) as journal:
        journal.add_problem("something leaks")
        before = (tmp_path / NAME).read_text()
        with pytest.raises(ValueError, match=f"another run writes .*{NAME}: wait for its end, or name another folder"):
            Journal.begin(tmp_path, {}, {})
        with pytest.raises(ValueError, match="another run writes"):
            Journal.resume(tmp_path)
        assert (tmp_path / NAME).read_text() == before
    with Journal.resume(tmp_path) as journal:
        assert journal.problems == ["something leaks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "6"), "its seed is 5, not 6"),
        (("--backend", "cpu"), "its backend is 'slow', not 'cpu'"),
        (("--profile", "quick"), "its profile is 'full', not 'quick'"),
        (("--op", "lif_scan"), "its ops is ['spike_encode'], not ['lif_scan']"),
        (("--out", "elsewhere"), "--out elsewhere is another"),
    ],
)
def test_other_options_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write_journal(tmp_path)
    done = COMMAND.invoke(app, ["conformance", "--resume", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, f"there is no {NAME} in it"),
        ("", "is damaged"),
        ("{}\n", "is damaged"),
        ("no json\n", "line 1 is no JSON"),
        ('{"format": 9}\n', "its format is 9, this version writes 1"),
        ('{"format": 1, "options": {}, "about": {}}\n{"id": "x"}\n', "is damaged"),
    ],
)
def test_a_folder_without_a_sound_journal_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / NAME).write_text(text)
    done = COMMAND.invoke(app, ["conformance", "--resume", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.output


def test_another_environment_is_refused(tmp_path: Path) -> None:
    before = {"torch": "2.12", "environment": {"SBHAL_SIM_WAVE": "32"}, "command": "a"}
    now = {"torch": "2.13", "environment": {"SBHAL_SIM_WAVE": "64", "SBHAL_CHECK": "1"}, "command": "b"}
    write_journal(tmp_path, **before)
    assert differences(before, before) == []
    with pytest.raises(
        ValueError, match=r"torch was '2\.12' and is '2\.13'; environment\.SBHAL_SIM_WAVE was '32'"
    ) as error:
        _journal(Options("slow", 5), tmp_path, now, Journal.resume(tmp_path))
    assert "environment.SBHAL_CHECK was None and is '1'" in str(error.value)
    assert "command" not in str(error.value)
