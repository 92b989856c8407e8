"""The performance section: every case beside the ceiling that binds it, in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from sample_reports import about, record
from spikingbrain_hal import use_backend
from spikingbrain_hal.conformance.run import bench, suite
from spikingbrain_hal.conformance.run.bench import bench_cases, in_turns, run_bench, shares, time_case
from spikingbrain_hal.conformance.run.ceilings import COPIED_AT_MOST, STREAMING, Ceiling, Ceilings, narrowest
from spikingbrain_hal.conformance.run.settings import Settings
from spikingbrain_hal.conformance.run.target import open_target
from spikingbrain_hal.conformance.verdict.record import Report, Status, Timing
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.spec import Case, OpSpec

TIMED = ("spike_encode", "gated_linear_attention_step_")
LINEAR = Case({"...": (4,), "K": 128, "N": 8, "G": 1}, dict(group_size=128))


@pytest.fixture(scope="module")
def ceilings() -> Ceilings:
    return Ceilings("cpu", 2)


def test_benchmarks_measure_every_case_beside_its_ceiling() -> None:
    seen: list[Timing] = []
    problems: list[str] = []
    timings = run_bench(Settings("cpu"), 1, TIMED, seen.append, problems.append)
    assert problems == []
    assert seen == timings
    assert [(t.op, t.dtype) for t in timings] == [
        ("gated_linear_attention_step_", "float32"),
        ("gated_linear_attention_step_", "bfloat16"),
        ("spike_encode", "float32"),
    ]
    for t in timings:
        assert t.milliseconds
        assert t.peak
        assert t.share
        assert t.spread
        assert 0 < t.spread[0] <= t.share <= t.spread[1]
        assert t.ceiling == ("copy" if t.bound == "memory" else f"{t.dtype} products")
        assert (t.fresh_share is not None) == (t.bound == "memory")


# ---- ceilings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_products_have_a_ceiling_by_their_dtype(ceilings: Ceilings, dtype: torch.dtype) -> None:
    found = ceilings.products(dtype)
    assert found is not None
    assert found.name == f"{dtype} products".removeprefix("torch.")
    assert found.amount / found.seconds("cpu") > 1e8
    assert ceilings.products(dtype) is found


def test_what_torch_does_not_multiply_has_no_ceiling(ceilings: Ceilings) -> None:
    assert ceilings.products(torch.int16) is None
    assert ceilings.products(torch.int64) is None


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("read", "written"), [(4096, 4096), (8192, 0), (1, 8191), (3 << 20, 1 << 20), (5, 2)])
def test_a_copy_moves_as_many_bytes(ceilings: Ceilings, read: int, written: int, fresh: bool) -> None:
    found = ceilings.copy(read, written, fresh)
    assert abs(found.amount - read - written) <= 2
    assert found.seconds("cpu") > 0
    assert found.name == ("copy into fresh memory" if fresh else "copy")


def test_a_copy_is_a_copy_and_of_bounded_size(ceilings: Ceilings) -> None:
    assert ceilings.copy(1 << 40, 1 << 30, fresh=True).amount <= COPIED_AT_MOST
    source, target = torch.arange(100_003) % 251, torch.zeros(100_003, dtype=torch.uint8)
    ceilings._move(target, source.to(torch.uint8))
    assert torch.equal(target, source.to(torch.uint8))


def test_only_the_process_that_times_streams_and_checks_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBHAL_CHECK", "1")
    for given, inherited in ((None, STREAMING), ("glibc.malloc.check=0", f"glibc.malloc.check=0:{STREAMING}")):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if given:
            monkeypatch.setenv("GLIBC_TUNABLES", given)
        with bench._environment():
            assert (os.environ["SBHAL_CHECK"], os.environ["GLIBC_TUNABLES"]) == ("0", inherited)
        assert (os.environ["SBHAL_CHECK"], os.environ.get("GLIBC_TUNABLES")) == ("1", given)


def test_case_and_ceiling_take_turns() -> None:
    said: list[str] = []
    ceiling = Ceiling("copy", 1.0, (lambda: (said.append("ceiling"), time.sleep(2e-3)),))
    pairs = in_turns(lambda: (said.append("case"), time.sleep(4e-3)), ceiling, "cpu")
    turns = [a for a, b in zip(said, [None, *said], strict=False) if a != b]
    assert turns == ["case", "ceiling"] * (len(turns) // 2)
    assert len(pairs) == len(turns) // 2 - 1, "the first is not counted"
    (least, *_, most) = sorted(shares(pairs, ceiling, 1.0))
    assert 0.1 < least <= most < 2


def test_a_share_is_of_the_amount() -> None:
    pairs = [(2.0, 1.0), (4.0, 1.0)]
    assert shares(pairs, Ceiling("copy", 10.0, ()), 20.0) == [1.0, 0.5]


# ---- which ceiling belongs to a case


def test_the_declaration_says_what_is_multiplied() -> None:
    counts, codes = torch.ones(4, dtype=torch.int16), torch.ones(4, dtype=torch.int8)
    assert narrowest([counts, codes]) == torch.int8
    assert OPERATORS["spike_linear"].products == ("counts", "weight")
    for spec in OPERATORS.values():
        assert set(spec.products) <= spec.inputs.keys()
        assert bool(spec.products) <= bool(spec.flops)


def test_a_backward_counts_derivatives_of_products() -> None:
    a = {"counts": torch.ones(4, 128), "weight": torch.ones(8, 128)}
    assert work("spike_linear_backward", a) == work("spike_linear", a), "counts and codes have none"
    x = {"x": torch.ones(16, 5)}
    assert work("lif_scan_backward", x) == 2 * work("lif_scan", x)


def work(op: str, a: dict[str, torch.Tensor]) -> float:
    flops = OPERATORS[op].flops
    assert flops is not None
    return flops(a)


def one(spec: OpSpec, case: Case, dtype: torch.dtype, ceilings: Ceilings) -> Timing:
    with use_backend("cpu"):
        return time_case(open_target("cpu"), ceilings, spec, case, dtype)


def test_products_without_a_ceiling_are_said_to_have_none(ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = OPERATORS["spike_linear"]
    monkeypatch.setattr(bench, "narrowest", lambda tensors: torch.int16)
    timing = one(spec, LINEAR, torch.int16, ceilings)
    assert timing.milliseconds
    assert (timing.share, timing.ceiling, timing.bound, timing.mistrusted) == (None, "", "", False)


@pytest.mark.parametrize(
    ("copies", "multiplies", "bound", "ceiling"),
    [(1e-9, 1e6, "compute", "int8 products"), (1.0, 1e-9, "memory", "copy")],
)
def test_the_ceiling_that_binds_is_taken(
    copies: float, multiplies: float, bound: str, ceiling: str, ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = {"copy": copies, "copy into fresh memory": copies, "int8 products": multiplies}
    monkeypatch.setattr(Ceiling, "seconds", lambda self, device, repeats=1: pace[self.name])
    timing = one(OPERATORS["spike_linear"], LINEAR, torch.int16, ceilings)
    assert (timing.bound, timing.ceiling) == (bound, ceiling)
    assert timing.mistrusted, "these ceilings are far too low"


def test_what_is_written_in_place_is_moved_twice(ceilings: Ceilings) -> None:
    spec, case = next((s, c) for s, c, _ in bench_cases(["gated_linear_attention_step_"]))
    timing = one(spec, case, torch.float32, ceilings)
    sizes = case.sizes
    state = 4 * sizes["slot"] * sizes["H"] * sizes["K"] * sizes["V"]
    assert timing.gbytes_per_s is not None
    assert timing.milliseconds is not None
    assert timing.gbytes_per_s * 1e6 * timing.milliseconds > 2 * state


@pytest.mark.parametrize(
    ("share", "fresh", "mistrusted"),
    [(1.05, None, False), (1.06, None, True), (0.5, 1.06, True), (None, None, False)],
)
def test_a_share_above_its_ceiling_is_mistrusted(share: float | None, fresh: float | None, mistrusted: bool) -> None:
    timing = Timing("lif_scan", "c", "float32", 1.0, share=share, fresh_share=fresh)
    assert timing.mistrusted is mistrusted
    assert timing.as_dict()["mistrusted"] is mistrusted


# ---- what ends early


@contextmanager
def silent(what: str, count: int) -> Iterator[Callable[[str, bool], None]]:
    yield lambda op, broken: None


@pytest.mark.parametrize(
    ("op", "timeout", "why", "printed"),
    [
        ("spike_collapse", 100.0, "the process was killed by SIGABRT", "Fatal Python error: Aborted"),
        ("lif_scan", 100.0, "the process ended with exit code 1", "the device fell off the bus"),
        ("lif_scan", 0.0, "no answer within 0 s; --timeout allows more", ""),
        ("spike_expand", 100.0, "the process closed its connection and lived on", "in hang"),
    ],
)
def test_benchmarks_that_end_early_are_a_problem(op: str, timeout: float, why: str, printed: str) -> None:
    settings = Settings("dies_when_timed", modules=("hostile_backend",), timeout=timeout)
    found = Report(about(), [record(Status.PASS)])
    assert found.passed
    suite._time(found, suite.Options(settings.backend, 0, ops=[op]), settings, silent)
    assert not found.passed
    assert {t.message for t in found.timings} == {f"not timed: {why}"}
    (problem,) = found.problems
    assert problem.startswith(f"the performance section ended after 0 of {len(found.timings)} benchmarks: {why}")
    assert printed in problem


def test_benchmarks_that_are_not_supported_are_no_problem() -> None:
    settings = Settings("dies_when_timed", modules=("hostile_backend",))
    found = Report(about(), [record(Status.PASS)])
    suite._time(found, suite.Options(settings.backend, 0, ops=["spike_encode"]), settings, silent)
    assert found.passed
    assert {t.message for t in found.timings} == {"not today"}
