"""Reports made up for tests."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from spikingbrain_hal.backend import Backend, DeviceProperties
from spikingbrain_hal.conformance import report
from spikingbrain_hal.conformance.verdict.mustpass import OPERATOR_SET, MustPass
from spikingbrain_hal.conformance.verdict.record import BACKEND, Record, Report, Status, Timing


def record(status: Status, op: str = "attention", dtype: str = "float32", check: str = "values", **more: Any) -> Record:
    """One record, whose id tells status, operator, check and dtype apart."""
    return Record(f"{op}/{check}/{dtype}/{status.value}", op, check, "", dtype, "case", status, **more)


@cache
def _head(simulated: bool, profile: str) -> dict[str, Any]:
    properties = DeviceProperties("Toy 9", {"cores": 3})
    backend = Backend("toy", "a toy maker", "cpu", lambda: None, dict, lambda: properties, simulated=simulated)
    return report.describe(backend, profile, 7, "sbhal conformance --backend toy")


def about(simulated: bool = True, profile: str = "quick", **more: Any) -> dict[str, Any]:
    """The head of a report of a backend without kernels."""
    return copy.deepcopy(_head(simulated, profile)) | {"started": "today", "seconds": 1.5} | more


def whole() -> Report:
    """A run of everything that reached level 4, on a device: all that must pass, and a case of each other level."""
    listed = MustPass.load(OPERATOR_SET)
    records = [record(Status.PASS, BACKEND, "", f"level{level}", level=level, worst=0.25) for level in (0, 1)]
    for op in listed.operators:
        records += [record(Status.PASS, op, check=f"level{level}", level=level, worst=0.25) for level in (3, 4)]
        for id in listed.ids(op):
            _, check, dtype, case = id.split("/")
            records.append(Record(id, op, check, "", dtype, case, Status.PASS, worst=0.25))
    return Report(about(simulated=False, profile="full"), records)


def every_status() -> Report:
    """A run in which everything happens that can."""
    shown = {
        Status.FAIL: {
            "message": "o is <wrong>\nTraceback, line 3",
            "reproduce": "sbhal conformance --case x",
            "worst": 3.0,
        },
        Status.CRASH: {
            "message": "killed by SIGSEGV",
            "output": "kernel <oops>\nat 0x0",
            "reproduce": "sbhal conformance",
        },
        Status.WAIVED: {"message": "rounds down", "waiver": "TOY-1"},
        Status.XPASS: {"message": "passes, though TOY-2 says not", "waiver": "TOY-2"},
        Status.UNSUPPORTED: {"message": "no kernel for it"},
    }
    records = [
        record(status, op, dtype, level=level, **shown.get(status, {}))
        for op, dtype, level in (("attention", "float16", 2), ("lif_scan", "int8", 3), ("backend", "", 0))
        for status in Status
    ]
    waivers = {
        "file": "w.toml",
        "entries": [{"id": "TOY-1", "issue": "T-7", "owner": "J. Doe", "expires": "2030-01-31"}],
    }
    timings = [
        Timing(
            "attention", "case", "float32", 2.0, 40.0, 3.0, 0.5, "compute", "", "float32 products", 80.0, (0.4, 0.6)
        ),
        Timing(
            *("spike_encode", "case", "float32", 2.0, 40.0, 3.0, 1.22, "memory", "", "copy", 2.4, (1.1, 1.3)),
            fresh_milliseconds=6.0,
            fresh_share=0.9,
        ),
        Timing("spike_linear", "case", "int16", 2.0, 40.0, 3.0),
        Timing("lif_scan", "c", "float32", message="out of memory"),
    ]
    head = about(waivers=waivers, interrupted="interrupted by SIGINT")
    return Report(head, records, timings, ["two things at once"])
