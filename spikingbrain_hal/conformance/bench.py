"""How fast the kernels are, as a share of what this machine can do: peaks are measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedOp
from ..registry import OPERATORS
from ..spec import Case, OpSpec
from ..testing import io_dtypes, make_inputs
from .child import Children, Gone
from .record import Timing
from .settings import Settings
from .target import Target, open_target
from .worker import lost_device

MATMUL_SIZE = 1536
COPY_BYTES = 1 << 28
LEAST_SECONDS, MOST_REPEATS = 0.3, 50


def _seconds(run: Callable[[], Any], device: str) -> list[float]:
    """Times of calls, after one to warm up."""
    run()
    times: list[float] = []
    while len(times) < 2 or (sum(times) < LEAST_SECONDS and len(times) < MOST_REPEATS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - started)
    return times


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure_roofline(device: str) -> dict[str, float]:
    """Peak rates, the best of many runs: a float32 matrix product, and a large copy, which reads and writes."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device)
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return {
        "flops_per_s": 2 * MATMUL_SIZE**3 / min(_seconds(lambda: torch.mm(a, a), device)),
        "bytes_per_s": 2 * COPY_BYTES / min(_seconds(lambda: target.copy_(source), device)),
    }


def bench_cases(ops: Sequence[str] = ()) -> Iterator[tuple[OpSpec, Case]]:
    """Every declared benchmark case of these operators and their backwards; of all if none is named."""
    for spec in OPERATORS.values():
        if not ops or spec.name in ops or (spec.forward is not None and spec.forward.name in ops):
            for case in spec.bench:
                yield spec, case


def _bench_inputs(spec: OpSpec, case: Case, target: Target) -> list[Any]:
    """As the cases' inputs, but what a backward is given comes from the backend: the reference would take hours."""
    dtype = io_dtypes(spec)[0]
    if spec.forward is None:
        return make_inputs(spec, case, dtype, device=target.device)
    args = make_inputs(spec.forward, case, dtype, device=target.device)
    outputs = target.call(spec.forward, args)
    a = spec.forward.bind(args) | {n: outputs[n] for n in spec.forward.saved}
    given = {f"grad_{n}": torch.randn_like(t) for n, t in outputs.items() if t.is_floating_point() and t.numel()}
    return [(a | given).get(name) for name in spec.arguments]


def time_case(target: Target, spec: OpSpec, case: Case) -> Timing:
    """Times one benchmark case on the backend, never on the reference."""
    blank = Timing(spec.name, case.id, str(io_dtypes(spec)[0]).removeprefix("torch."))
    if spec.name not in target.kernels:
        return replace(blank, message=target.refused[spec.name])
    try:
        args = _bench_inputs(spec, case, target)
        # the memory is there before, as it is where memory is cached
        launch, outputs = target.prepare(spec, args, torch.get_num_threads())
        seconds = statistics.median(_seconds(launch, target.device))
    except (UnsupportedOp, RuntimeError) as error:
        if lost_device(error):
            raise
        return replace(blank, message=str(error).splitlines()[0])
    moved = sum(t.numel() * t.itemsize for t in (*args, *outputs) if isinstance(t, Tensor))
    work = spec.flops(spec.bind(args)) if spec.flops else None
    return replace(
        blank,
        milliseconds=1e3 * seconds,
        gflops=work / seconds / 1e9 if work else None,
        gbytes_per_s=moved / seconds / 1e9,
    )


def with_share(timing: Timing, roofline: Mapping[str, float]) -> Timing:
    """The timing beside the roofline: its rate over the peak of whichever binds, arithmetic or memory."""
    if timing.gbytes_per_s is None:
        return timing
    shares = {
        "compute": 1e9 * (timing.gflops or 0.0) / roofline["flops_per_s"],
        "memory": 1e9 * timing.gbytes_per_s / roofline["bytes_per_s"],
    }
    bound = max(shares, key=lambda name: shares[name])
    return replace(timing, share=shares[bound], bound=bound)


def serve_bench(connection: Connection, backend: str, modules: Sequence[str], threads: int, ops: Sequence[str]) -> None:
    """The body of the process that times: sends one timing a case, then the peaks, the best of before and after."""
    torch.set_num_threads(threads)
    for module in modules:
        import_module(module)
    target = open_target(backend)
    before = measure_roofline(target.device)
    for spec, case in bench_cases(ops):
        connection.send(time_case(target, spec, case))
    after = measure_roofline(target.device)
    connection.send({name: max(before[name], after[name]) for name in before})


def run_bench(
    settings: Settings,
    threads: int,
    ops: Sequence[str],
    progress: Callable[[Timing], None],
    complain: Callable[[str], None],
) -> tuple[dict[str, float], list[Timing]]:
    """Times every benchmark case in a process of its own; one that crashes or hangs leaves the rest untimed.

    Args:
        settings: Where.
        threads: Of that process.
        ops: Only these operators and their backwards, all if empty.
        progress: Called with each timing as it comes in.
        complain: Called with what ended the process before it had come to its end, if anything did.

    Returns:
        The peaks, empty if the process did not come to its end, and a timing for each case.
    """
    children = Children()
    child = children.start(serve_bench, settings.backend, settings.modules, threads, ops)
    timings: list[Timing] = []
    roofline: dict[str, float] = {}
    why = ""
    try:
        while not roofline and not why:
            heard = [message for _, message in children.listen(settings.timeout)]
            if not heard:
                child.abort()
                why = f"no answer within {settings.timeout:g} s; --timeout allows more"
            for message in heard:
                match message:
                    case Timing():
                        timings.append(message)
                        progress(message)
                    case Gone(cause):
                        why = cause
                    case _:
                        roofline = message
    finally:
        child.close()
    planned = [Timing(s.name, c.id, "", message=f"not timed: {why}") for s, c in bench_cases(ops)]
    if why:
        count = f"{len(timings)} of {len(planned)} benchmarks"
        complain(f"the performance section ended after {count}: {why}\n{child.output.finish()}".strip())
    timed = [with_share(t, roofline) for t in timings] if roofline else timings
    return roofline, timed + planned[len(timings) :]
