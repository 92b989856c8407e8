"""Where tensors lie: reads beside them, offsets of 32 bits and lost ends are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle_bugs import (
    run,
    with_kernel,
)
from torch import Tensor

from spikingbrain_hal.backend import Kernel
from spikingbrain_hal.conformance.checks import buffers
from spikingbrain_hal.conformance.run import guard, runner
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.verdict.record import Status

pytestmark = pytest.mark.usefixtures("one_thread", "contents_are_checked")


def with_32_bit_offsets(kernel: Kernel) -> Kernel:
    def wrapped(tensor: Tensor) -> Tensor:
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        return tensor.as_strided(tensor.shape, [0 if (n - 1) * s >= 1 << 31 else s for n, s in pairs])

    def launch(*args: Any) -> None:
        kernel.launch(*(wrapped(a) if isinstance(a, Tensor) and a.numel() else a for a in args))

    return kernel._replace(launch=launch)


def test_offsets_of_32_bits_are_rejected() -> None:
    backend = with_kernel("attention", with_32_bit_offsets, simulated=False)
    records = run(backend, "attention", "far_apart", "k", profile="full")
    assert {r.status for r in records} == {Status.FAIL}
    assert "k far apart: o is not bitwise the same" in records[0].message


def test_tensors_past_a_limit_are_compared_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LIMIT", 1 << 16)
    same = with_kernel("spike_expand", lambda kernel: kernel, simulated=False)
    (record,) = run(same, "spike_expand", "huge", profile="full")
    assert (record.status, record.message) == (Status.PASS, "")

    def loses_the_end(kernel: Kernel) -> Kernel:
        def launch(*args: Any) -> None:
            kernel.launch(*args)
            trains = args[4].view(-1)
            trains[buffers.LIMIT :] = 0

        return kernel._replace(launch=launch)

    (record,) = run(with_kernel("spike_expand", loses_the_end, simulated=False), "spike_expand", "huge", profile="full")
    assert record.status == Status.FAIL
    assert "trains differs in repetition" in record.message


def test_what_memory_does_not_allow_is_not_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "SHARE", 0.0)
    same = with_kernel("spike_expand", lambda kernel: kernel, simulated=False)
    (record,) = run(same, "spike_expand", "huge", profile="full")
    assert record.status == Status.NOT_RUN
    assert "GB" in record.message


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_guarded_memory_holds_what_is_written(side: str, dtype: torch.dtype) -> None:
    for shape in ((), (0,), (3, 5), (4096,), (4097,)):
        tensor = guard.guarded_empty(shape, dtype, side)
        assert tensor.shape == shape
        assert bool((tensor.fill_(3) == 3).all())


def test_reads_beside_a_buffer_cost_one_case_each() -> None:
    settings = runner.Settings("overreading", jobs=2, modules=("overreading_backend",))
    ops = ("spike_encode", "spike_quantize")
    checks = ("values", "guard_pages")
    items = [i for i in plan("quick") if i.op in ops and i.check in checks and i.dtype == "float32" and i.case == 0]
    status = {(r.op, r.check, r.part): r.status for r in runner.run(items, settings)}
    assert status["spike_encode", "values", ""] == status["spike_quantize", "values", ""] == Status.PASS
    assert status["spike_encode", "guard_pages", "after"] == Status.CRASH
    assert status["spike_quantize", "guard_pages", "before"] == Status.CRASH
    assert status["spike_quantize", "guard_pages", "after"] == Status.PASS


def test_memory_of_other_devices_is_surrounded_by_poison() -> None:
    for side in guard.SIDES:
        memory = guard.memory_beside("meta", 5, torch.float32, side)
        assert memory.shape == (5,)
        assert memory.untyped_storage().nbytes() > 5 * memory.itemsize
        assert (memory.storage_offset() == 0) == (side == "after")
