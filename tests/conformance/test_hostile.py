"""Backends that crash, hang, print, leak and lie are run to the end, and the records say what happened."""

from __future__ import annotations

import json
import os
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spikingbrain_hal.cli.app import app
from spikingbrain_hal.conformance.report import TARBALL, bundle
from spikingbrain_hal.conformance.run import child
from spikingbrain_hal.conformance.run.case import Item, plan
from spikingbrain_hal.conformance.run.child import TAIL_BYTES
from spikingbrain_hal.conformance.run.journal import NAME, Journal
from spikingbrain_hal.conformance.run.runner import Run
from spikingbrain_hal.conformance.run.settings import Settings
from spikingbrain_hal.conformance.run.worker import lost_device
from spikingbrain_hal.conformance.verdict.record import BACKEND, Record, Status
from spikingbrain_hal.errors import DeviceError

LAST_WORDS, PRINTED = "these are the last words", 2100 << 20  # of a module that only workers may import
COMMAND = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def items(op: str, *cases: str) -> list[Item]:
    """The float32 values of an operator's cases that begin like this, in this order."""
    known = [i for i in plan("quick", [op]) if i.check == "values" and i.dtype in ("float32", "int16", "int8")]
    return [next(i for i in known if i.op == op and i.case_id.startswith(case)) for case in cases]


def run(backend: str, planned: list[Item], **settings: float) -> tuple[dict[str, Record], list[str]]:
    """The records by operator and case, and the problems."""
    problems: list[str] = []
    kept: list[Record] = []
    with Run(Settings(backend, modules=("hostile_backend",), **settings)) as running:  # type: ignore[arg-type]
        running.keep, running.complain = kept.append, problems.append
        running.finish(planned)
    assert sorted(r.id for r in kept) == sorted(i.id for i in planned), "each item has one record"
    assert not os.path.exists("core")
    return {f"{r.op}/{r.case}": r for r in kept}, problems


def test_whatever_a_case_does_to_its_process_costs_that_case() -> None:
    planned = items("spike_encode", "scalar") + items("spike_expand", "130") + items("spike_collapse", "S6")
    planned += items("lif_scan", "T5") + items("spike_quantize", "scalar", "4-K128")
    planned += items("gated_linear_attention_step_", "B3")
    planned += [i for i in plan("full", ["spike_linear"]) if i.op == "spike_linear" and i.check == "repeated"][:8]
    found, problems = run("hostile", planned, jobs=2, timeout=6.0)
    assert problems == []

    by_op = {r.op: r for r in found.values() if r.status != Status.PASS}
    assert {op: r.status.value for op, r in by_op.items() if op != "spike_linear"} == {
        "spike_encode": "crash",
        "spike_expand": "crash",
        "spike_collapse": "crash",
        "lif_scan": "device_lost",
        "spike_quantize": "timeout",
        "gated_linear_attention_step_": "lied",
    }
    assert "SIGABRT" in by_op["spike_encode"].message
    assert "SIGSEGV" in by_op["spike_expand"].message
    assert "in segfault" in by_op["spike_expand"].output, "the stack where it crashed"
    assert "exit code 0" in by_op["spike_collapse"].message
    printed = by_op["spike_collapse"].output
    assert LAST_WORDS in printed
    assert "a buffer of C's" in printed
    dropped = int(printed.partition(" bytes")[0].lstrip("["))
    assert dropped + TAIL_BYTES > PRINTED
    assert len(printed) < TAIL_BYTES + 100
    assert "fell off the bus" in by_op["lif_scan"].message
    assert "no answer within 6 s" in by_op["spike_quantize"].message
    assert "in hang" in by_op["spike_quantize"].output, "the stack where it hung"
    assert found["spike_quantize/4-K128"].status == Status.PASS
    nan = [r for r in found.values() if r.op == "spike_linear"]
    assert any(r.status == Status.FAIL and "not bitwise the same" in r.message for r in nan)
    for record in by_op.values():
        assert record.reproduce.startswith("sbhal conformance --backend hostile --import hostile_backend --case ")


@pytest.fixture
def impatient() -> Iterator[None]:
    """A run that waits for ever fails."""

    def give_up(*_: object) -> None:
        raise RuntimeError("the run waits for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("backend", "status", "why"),
    [
        ("closes", "crash", "the process closed its connection and lived on"),
        ("leaves_heirs", "crash", "the process was killed by SIGSEGV"),
        ("leaves_heirs_of_own_group", "crash", "the process was killed by SIGSEGV"),
        ("ignores_signals", "timeout", "no answer within 4 s"),
        ("stops", "timeout", "no answer within 4 s"),
        ("writes_half", "timeout", "no answer within 4 s"),
        ("writes_half_and_dies", "crash", "the process was killed by SIGABRT"),
        ("writes_nonsense", "crash", "the process sent what cannot be read (UnpicklingError: "),
        ("writes_without_end", "crash", "the process sent what cannot be read (OSError: bad message length)"),
        ("writes_twice", "crash", "its own result was pass; after it, before the next case, the process sent what no"),
    ],
)
def test_a_process_that_keeps_others_waiting_costs_its_case(
    backend: str, status: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PARTING_SECONDS", 3.0)
    found, problems = run(backend, items("spike_encode", "scalar"), timeout=4.0 if status == "timeout" else 60.0)
    assert problems == []
    (lost,) = found.values()
    assert (lost.status.value, lost.message[: len(why)]) == (status, why)
    if backend in ("closes", "stops", "writes_half"):
        assert "Fatal Python error: Aborted" in lost.output, "the stack where it waits"


def test_a_crash_that_needs_an_earlier_case_says_so() -> None:
    found, _ = run("damaging", items("spike_encode", "4-K128") + items("spike_quantize", "4-K128", "scalar"))
    assert found["spike_encode/4-K128"].status == Status.PASS
    crash = found["spike_quantize/4-K128"]
    assert crash.status == Status.CRASH
    assert "SIGABRT, after 1 others in the same process, the last spike_encode/values" in crash.message
    assert "alone in a new process it ends with pass" in crash.message
    assert found["spike_quantize/scalar-K33"].status == Status.PASS


def test_a_crash_between_cases_is_charged_to_the_one_before() -> None:
    found, problems = run("dies_in_cleanup", items("spike_encode", "4-K128", "scalar", "2x3"))
    assert [r.status for r in found.values()] == [Status.PASS, Status.CRASH, Status.PASS]
    crash = found["spike_encode/scalar-K33"]
    assert "its own result was pass; after it, before the next case, the process was killed by SIGSEGV" in crash.message
    assert problems == []


def test_a_death_between_batches_is_a_problem_that_names_the_case_before() -> None:
    found, problems = run("dies_between_batches", items("spike_encode", "scalar") + items("spike_quantize", "scalar"))
    assert [r.status for r in found.values()] == [Status.PASS, Status.PASS]
    (problem,) = problems
    assert "had run 1 cases, the last spike_encode/values/float32/scalar-K33, and was to run more" in problem
    assert "the process was killed by SIGSEGV" in problem


def test_a_process_that_ends_badly_is_a_problem() -> None:
    found, problems = run("ends_badly", items("spike_encode", "4-K128"))
    assert [r.status for r in found.values()] == [Status.PASS]
    (problem,) = problems
    assert "had run 1 cases and was to end: the process was killed by SIGSEGV" in problem


def test_growing_memory_is_charged_to_what_grows_it() -> None:
    planned = items("spike_encode", "4-K128", "2x3", "3-K") + items("spike_quantize", "scalar", "4-K128")
    found, problems = run("leaking", planned, memory=200)
    assert {r.status for r in found.values() if r.op == "spike_encode"} == {Status.PASS}
    assert any("memory leaks" in p and "in spike_encode/values" in p for p in problems)
    crash = found["spike_quantize/scalar-K33"]
    assert crash.status == Status.CRASH
    assert "the process was ended when the case had grown it by" in crash.message
    assert found["spike_quantize/4-K128"].status == Status.PASS


def test_what_is_wrong_with_the_whole_backend_is_found() -> None:
    parts = {
        "plans_on_host": "spike_encode",
        "launch_without_memory": "spike_quantize",
        "memory": "lif_scan",
        "errors": "spike_linear",
        "concurrency": "spike_expand",
    }
    whole = [Item(BACKEND, 0, "", check, part) for check, part in parts.items()]
    whole += [Item(BACKEND, 0, "", check) for check in ("manifest", "versions", "loads_alone")]
    whole += [Item(BACKEND, 0, "", check, "spike_encode") for check in ("memory", "errors", "concurrency")]
    kept: list[Record] = []
    with Run(Settings("unsound", modules=("hostile_backend",))) as running:
        running.keep = kept.append
        running.finish(whole)
    found = {(r.check, r.part): r for r in kept}
    assert found["plans_on_host", "spike_encode"].status == Status.CRASH
    assert "SIGSEGV" in found["plans_on_host", "spike_encode"].message
    assert "without memory: y is not bitwise the same" in found["launch_without_memory", "spike_quantize"].message
    assert "inputs behind one: spikes is not bitwise" in found["memory", "lif_scan"].message
    assert "the call after counts of bool: y is not bitwise" in found["errors", "spike_linear"].message
    assert "trains is not bitwise the same" in found["concurrency", "spike_expand"].message
    assert "details are no plain data" in found["manifest", ""].message
    assert "spike_collapse: the kernel was built for version 99" in found["versions", ""].message
    assert "it prints when it is loaded:\nhello" in found["loads_alone", ""].message
    for check in ("memory", "errors", "concurrency"):
        assert found[check, "spike_encode"].status == Status.PASS, found[check, "spike_encode"].message


def test_a_process_that_dies_while_it_opens_the_backend_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_FOLDER", str(tmp_path))
    case = "spike_encode/values/float32/scalar-K33"
    arguments = ["--backend", "dies_at_first", "--import", "hostile_backend", "--case", case, "--jobs", "1"]
    done = COMMAND.invoke(app, ["conformance", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 1, done.output
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["complete"]
    assert [c["status"] for c in data["cases"]] == ["pass"]
    (problem,) = data["problems"]
    assert "a worker process for backend 'dies_at_first' did not start: the process was killed by SIGABRT" in problem
    assert Journal.resume(tmp_path).problems == [problem]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (DeviceError("no answer"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"), True),
        (RuntimeError("HIP error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), False),
        (RuntimeError("the size of tensor a (2) must match; CUDA error"), False),
        (ValueError("CUDA error: 2 is no device"), False),
    ],
)
def test_a_lost_device_is_known_by_its_words_too(error: Exception, lost: bool) -> None:
    assert lost_device(error) is lost


def test_a_backend_that_cannot_be_opened_gets_a_report(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("of another run\n")
    arguments = ["--backend", "stillborn", "--import", "hostile_backend", "--profile", "quick", "--op", "spike_encode"]
    done = COMMAND.invoke(app, ["conformance", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 1, done.output
    data = json.loads((tmp_path / "report.json").read_text())
    assert not data["passed"]
    assert not data["complete"]
    assert {c["status"] for c in data["cases"]} == {"not_run"}
    assert "no worker for backend 'stillborn' starts: the process was killed by SIGSEGV" in data["problems"][0]
    assert "loading" in data["problems"][0]
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iterfind("testsuite[@name='run']")
    assert [c.find("error") is not None for c in suite] == [True, True]
    assert (tmp_path / NAME).read_text() == "of another run\n"
    assert NAME not in bundle.load(tmp_path / TARBALL)
