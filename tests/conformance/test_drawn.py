"""Drawn calls find what is wrong, the same each time, and a crash is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from oracle_bugs import (
    changed,
    drops_a_tail,
    run,
    with_kernel,
)
from torch import Tensor

from spikingbrain_hal.backend import Kernel
from spikingbrain_hal.conformance.run import fuzz
from spikingbrain_hal.conformance.verdict.record import Status
from spikingbrain_hal.testing import python_backend

pytestmark = pytest.mark.usefixtures("one_thread", "contents_are_checked")


def test_the_same_seed_draws_the_same_failure() -> None:
    backend = python_backend("planted", {"attention": changed("attention", drops_a_tail)})
    first, again = (
        [r.message.splitlines()[0] for r in run(backend, "attention", "random_shapes", profile="full") if r.broken]
        for _ in range(2)
    )
    assert first
    assert first == again
    assert all("Tk" in message for message in first)


def raising(error: Exception) -> Callable[[Kernel], Kernel]:
    def change(kernel: Kernel) -> Kernel:
        def plan(*args: Any) -> int:
            if isinstance(args[0], Tensor) and args[0].numel() < 2:
                raise error
            return kernel.plan(*args)

        return kernel._replace(plan=plan)

    return change


def accepting(kernel: Kernel) -> Kernel:
    return kernel._replace(plan=lambda *args: 0, launch=lambda *args: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (raising(RuntimeError("lif_scan: boom")), "instead of an error that callers expect"),
        (raising(AttributeError("boom")), "AttributeError instead of"),
        (raising(ValueError("too few")), "does not name the operator"),
        (raising(ValueError("lif_scan: too few")), "refused, but the declaration accepts it"),
        (accepting, "accepted, but the declaration says"),
    ],
)
def test_untyped_and_undeclared_refusals_are_found(change: Callable[[Kernel], Kernel], message: str) -> None:
    backend = replace(with_kernel("lif_scan", change), checks_contents=True)
    (record,) = run(backend, "lif_scan", "arguments")
    assert record.status == Status.FAIL
    assert message in record.message


def test_the_fuzz_reports_a_crash_with_the_command_that_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backend", "overreading", "--import", "overreading_backend", "--op", "spike_expand", "--seed", "3"]
    assert fuzz.main([*options, "--examples", "100", "--jobs", "1"]) == 1
    shown = capsys.readouterr().out
    assert "crash spike_expand" in shown
    assert "fuzz --backend overreading --import overreading_backend --op spike_expand --chunk 0 --seed 3" in shown


def test_the_fuzz_counts_what_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--backend", "cpu", "--op", "spike_collapse", "--examples", "150", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("150 calls of 1 operators")
    assert "0 of 3 chunks of 50 calls failed" in shown


@pytest.mark.parametrize("given", [("--examples", "0"), ("--examples", "-5"), ("--examples", "1.5"), ("--jobs", "0")])
def test_the_fuzz_refuses_to_run_nothing(given: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--backend", "cpu", *given])
    assert ended.value.code == 2
    assert f"argument {given[0]}: {given[1]!r} is not a whole number of at least 1" in capsys.readouterr().err


def test_the_fuzz_names_a_backend_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--backend", "nosuch", "--op", "spike_collapse", "--examples", "1", "--jobs", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("--backend nosuch: there is no backend 'nosuch'. Installed: ")
    assert shown.err.count("\n") == 1
