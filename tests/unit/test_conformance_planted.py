"""The suite proves itself: it rejects every planted bug, and accepts kernels that are right in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import planted
import pytest
import torch
from planted import changed, given, gla

from spikingbrain_hal import register_backend, unregister_backend, use_backend
from spikingbrain_hal.backend import Backend, Kernel
from spikingbrain_hal.conformance.case import plan
from spikingbrain_hal.conformance.record import Record, Status
from spikingbrain_hal.conformance.target import open_target
from spikingbrain_hal.conformance.worker import Session
from spikingbrain_hal.errors import UnsupportedOp
from spikingbrain_hal.testing import python_backend

pytestmark = pytest.mark.usefixtures("one_thread")
GLA, GLA_BACKWARD, STEP = "gated_linear_attention", "gated_linear_attention_backward", "gated_linear_attention_step_"
SLOW = ("opcheck", "compiled", "inductor")


@contextmanager
def session(backend: Backend) -> Iterator[Session]:
    register_backend(backend)
    try:
        with use_backend(backend.name):
            yield Session(open_target(backend.name), seed=0)
    finally:
        unregister_backend(backend.name)


def run(op: str, backend: Backend, checks: tuple[str, ...] = ()) -> list[Record]:
    """The quick profile of one operator, all checks but the slow ones or just these."""
    with session(backend) as running:
        items = [i for i in plan("quick", [op]) if i.op == op and (i.check in checks or not checks)]
        return [running.run(i) for i in items if i.check not in SLOW]


def one_and_a_half(a: Mapping[str, Any], outputs: list[torch.Tensor]) -> None:
    place = outputs[0].abs().float().reshape(-1).nan_to_num(posinf=0).argmax()
    outputs[0].view(-1)[place] *= 1.5


def last_row_missing(a: Mapping[str, Any], outputs: list[torch.Tensor]) -> None:
    outputs[0].select(1, -1).zero_()


def noisy(a: Mapping[str, Any], outputs: list[torch.Tensor]) -> None:
    outputs[0].mul_(1 + 1e-7 * torch.rand_like(outputs[0]))


REJECTED: dict[str, tuple[str, Callable[..., Any], str]] = {
    "state in bfloat16": (GLA, partial(gla, state_rounding=planted.to_bfloat16), "values"),
    "keys into the state in bfloat16": (GLA, partial(gla, block=16, key_rounding=planted.to_bfloat16), "values"),
    "products in TF32": (GLA, partial(gla, factor=planted.to_tf32), "values"),
    "heads grouped by remainder": (GLA, partial(gla, heads=lambda h, hq, hk: h % hk), "values"),
    "one block not decayed": (GLA, partial(gla, block=16, skip_decay_at=1), "values"),
    "a leak of the future below tolerance": (GLA, partial(gla, leak=1e-7), "causality"),
    "initial state ignored": (GLA, given(GLA, initial_state=None), "split"),
    "initial state ignored when cut": (GLA, given(GLA, initial_state=None), "chunks"),
    "state handed over one step late": (
        GLA,
        changed(GLA, lambda a, out: out[1].mul_(1.01)),
        "split",
    ),
    "resets by differences of sums": (GLA, planted.gla_by_log_sums, "resets"),
    "padding not cleared": (GLA, changed(GLA, planted.unzeroed_padding), "values"),
    "packing ignored": (GLA, changed(GLA, planted.as_one_sequence), "packed"),
    "one element of GLA x 1.5": (GLA, changed(GLA, one_and_a_half), "values"),
    "last row of GLA not computed": (GLA, changed(GLA, last_row_missing), "values"),
    "another result each time": (GLA, changed(GLA, noisy), "repeated"),
    "gate gradient x 1.001": (
        GLA_BACKWARD,
        changed(GLA_BACKWARD, lambda a, out: out[3].mul_(1.001)),
        "values",
    ),
    "state gradient absent": (
        GLA_BACKWARD,
        given(GLA_BACKWARD, grad_final_state=None),
        "values",
    ),
    "a slot of -1 not skipped": (STEP, changed(STEP, lambda a, out: out[0].add_(1.0)), "values"),
    "window one too wide": (
        "attention",
        given("attention", window=lambda a: a["window"] and a["window"] + 1),
        "values",
    ),
    "aligned at the top left": (
        "attention",
        changed("attention", lambda a, out: out[0].copy_(out[0].roll(1, 1))),
        "values",
    ),
    "sinks ignored": ("attention", given("attention", sinks=0), "values"),
    "lengths ignored": ("attention", given("attention", kv_lengths=None), "padding"),
    "LSE in base 2": ("attention", changed("attention", lambda a, out: out[1].mul_(1.442695)), "values"),
    "one element of attention x 1.5": ("attention", changed("attention", one_and_a_half), "values"),
    "attention not causal": ("attention", given("attention", causal=False, window=0), "causality"),
    "LSE's gradient ignored": (
        "attention_backward",
        given("attention_backward", grad_lse=None),
        "values",
    ),
    "value gradient x 1.01": (
        "attention_backward",
        changed("attention_backward", lambda a, out: out[2].mul_(1.01)),
        "values",
    ),
    "reset not applied to the last state": (
        "lif_scan",
        changed("lif_scan", lambda a, out: out[1].add_(out[0][-1].float() if len(out[0]) else 0)),
        "split",
    ),
    "strict comparison": ("lif_scan", given("lif_scan", strict=lambda a: not a["strict"]), "values"),
    "decay off by a thousandth": ("lif_scan", given("lif_scan", decay=lambda a: a["decay"] * 1.001), "values"),
    "counts rounded down": ("lif_scan", given("lif_scan", count_rounding="floor"), "values"),
    "a spike lost": ("lif_scan", changed("lif_scan", lambda a, out: out[0].view(-1)[:3].zero_()), "values"),
    "reset gradient attached": ("lif_scan_backward", given("lif_scan_backward", detach_reset=False), "values"),
    "another surrogate": ("lif_scan_backward", given("lif_scan_backward", surrogate="sigmoid"), "values"),
    "surrogate of another width": ("lif_scan_backward", given("lif_scan_backward", alpha=3.9), "values"),
    "ties away from zero": ("spike_encode", partial(planted.encode, rounding=planted.away_from_zero), "values"),
    "rounded down": ("spike_encode", partial(planted.encode, rounding=torch.floor), "values"),
    "mean not rounded": ("spike_encode", given("spike_encode", mean_dtype="float32"), "values"),
    "threshold of the first row for all": (
        "spike_encode",
        changed("spike_encode", lambda a, out: out[1].fill_(out[1].reshape(-1)[0].item())),
        "values",
    ),
    "a level too many": ("spike_quantize", changed("spike_quantize", one_and_a_half), "values"),
    "bits in the other order": (
        "spike_expand",
        given("spike_expand", bit_order=lambda a: "lsb" if a["bit_order"] == "msb" else "msb"),
        "values",
    ),
    "sign bit positive": (
        "spike_collapse",
        given("spike_collapse", coding=lambda a: a["coding"].replace("twos_complement", "bitwise")),
        "values",
    ),
}


@pytest.mark.parametrize("bug", REJECTED)
def test_planted_bug_is_rejected(bug: str) -> None:
    op, function, check = REJECTED[bug]
    records = run(op, python_backend("planted", {op: function}), (check,))
    failed = [r for r in records if r.status == Status.FAIL]
    assert failed, f"{check} accepted: {bug}"
    assert all("Error" not in r.message.split(":")[0] for r in failed), failed[0].message


ROUNDED_WEIGHTS = partial(planted.attention, round_weights=True)
ACCEPTED: dict[str, tuple[str, Callable[..., Any]]] = {
    "GLA a head at a time": (GLA, gla),
    "GLA in blocks of 16": (GLA, partial(gla, block=16)),
    "GLA in float64": (GLA, partial(gla, inner=torch.float64, block=7)),
    "attention by online softmax": ("attention", planted.attention),
    "attention in other blocks": ("attention", partial(planted.attention, block=5)),
    "attention with weights rounded to the inputs' dtype": (
        "attention",
        partial(planted.attention, round_weights=True),
    ),
    "neurons in float64": ("lif_scan", planted.lif_in_another_order),
    "counts by the reciprocal": ("spike_encode", partial(planted.encode, reciprocal=True)),
}
NUMERIC = ("values", "alternatives", "chunks", "causality", "resets", "resets_separate", "packed", "padding")


@pytest.mark.parametrize("variant", ACCEPTED)
def test_variant_that_is_right_is_accepted(variant: str) -> None:
    op, function = ACCEPTED[variant]
    records = run(op, python_backend("variant", {op: function}), NUMERIC)
    assert len(records) > 10
    assert [r.message for r in records if r.status != Status.PASS] == []


def test_split_bfloat16_keys_keep_the_state_exact_enough() -> None:
    function = partial(gla, block=16, key_rounding=planted.split_bfloat16)
    records = run(GLA, python_backend("variant", {GLA: function}), ("values",))
    narrow = [r for r in records if r.dtype != "float32"]
    assert narrow
    assert all(r.status == Status.PASS for r in narrow)


# ---- kernels that misbehave rather than miscalculate


def with_kernel(op: str, change: Callable[[Kernel], Kernel]) -> Backend:
    plain = python_backend("planted")
    kernels = dict(plain.load())
    kernels[op] = change(kernels[op])
    return Backend("planted", "test", "cpu", lambda: None, lambda: kernels, plain.properties, simulated=True)


def outputs_of(args: tuple[Any, ...]) -> torch.Tensor:
    """The first output of a launch of attention."""
    output: torch.Tensor = args[10]
    return output


def writes_beside(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        output = outputs_of(args)
        if output.untyped_storage().nbytes() > output.numel() * output.itemsize:
            output.as_strided((output.numel() + 1,), (1,), output.storage_offset())[-1] = 0

    return kernel._replace(launch=launch)


def leaves_a_tail(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        output = outputs_of(args)
        kept = output.reshape(-1)[-1:].clone()
        kernel.launch(*args)
        output.view(-1)[-1:] = kept

    return kernel._replace(launch=launch)


def writes_an_input(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        args[0].zero_()

    return kernel._replace(launch=launch)


def depends_on_threads(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        outputs_of(args).mul_(1 + 1e-6 * args[-1])

    return kernel._replace(launch=launch)


def writes_before_refusing(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        outputs_of(args).zero_()
        kernel.launch(*args)

    return kernel._replace(launch=launch)


def accepts_anything(kernel: Kernel) -> Kernel:
    return kernel._replace(plan=lambda *args: 0, launch=lambda *args: None)


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (writes_beside, "poisoned", "memory beside o was written"),
        (leaves_a_tail, "poisoned", "poisoned against cleared memory"),
        (writes_an_input, "poisoned", "the input q was written"),
        (depends_on_threads, "threads", "2 threads against 1"),
        (writes_before_refusing, "refuses", "outputs were written"),
        (accepts_anything, "refuses", "accepted"),
    ],
)
def test_misbehaving_kernel_is_rejected(change: Callable[[Kernel], Kernel], check: str, message: str) -> None:
    records = run("attention", with_kernel("attention", change), (check,))
    assert any(r.status == Status.FAIL and message in r.message for r in records), [r.message for r in records]


def test_a_plan_that_says_yes_where_the_launch_says_no_has_lied() -> None:
    def refuses_late(kernel: Kernel) -> Kernel:
        def launch(*args: Any) -> None:
            raise UnsupportedOp("not today")

        return kernel._replace(launch=launch)

    records = run("attention", with_kernel("attention", refuses_late), ("values", "poisoned"))
    assert {r.status for r in records} == {Status.LIED}


def test_a_plan_that_says_no_is_unsupported_with_its_reason() -> None:
    def refuses(kernel: Kernel) -> Kernel:
        def plan(*args: Any) -> int:
            raise UnsupportedOp("no bfloat16 here")

        return kernel._replace(plan=plan, launch=plan)

    records = run("attention", with_kernel("attention", refuses), ("values",))
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    assert "no bfloat16 here" in records[0].message


def test_an_outdated_kernel_is_unsupported_with_its_reason() -> None:
    records = run("attention", with_kernel("attention", lambda k: k._replace(version=0)), ("values",))
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    assert "version 0" in records[0].message
