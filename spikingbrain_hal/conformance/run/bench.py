"""How fast the kernels are, as a share of what the machine does: each case takes turns with the ceiling over it."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from ...declare.inputs import io_dtypes, make_inputs
from ...declare.registry import OPERATORS
from ...declare.spec import Case, OpSpec
from ...errors import UnsupportedOp
from ..verdict.record import Timing
from .ceilings import STREAMING, Ceiling, Ceilings, Run, narrowest, seconds
from .child import Children, Gone
from .settings import Settings
from .target import Target, open_target
from .worker import lost_device

SAMPLE_SECONDS = 1e-3  # shorter runs are timed several at once
LEAST_SECONDS, LEAST_PAIRS, MOST_PAIRS = 0.1, 3, 5
LONG_SECONDS = 0.3  # what takes as long needs no run to warm up
Pairs = list[tuple[float, float]]
BenchCase = tuple[OpSpec, Case, torch.dtype]


def bench_cases(ops: Sequence[str] = ()) -> Iterator[BenchCase]:
    """Every declared benchmark case of these operators and their backwards; of all if none is named.

    Each is timed at the first dtype that the operator has, and a forward that is made of products in bfloat16 too.
    """
    for spec in OPERATORS.values():
        if ops and spec.name not in ops and (spec.forward is None or spec.forward.name not in ops):
            continue
        known = io_dtypes(spec)
        dtypes = [known[0]] + [torch.bfloat16] * (torch.bfloat16 in known and bool(spec.products) and not spec.forward)
        yield from ((spec, case, dtype) for dtype in dtypes for case in spec.bench)


def _bench_inputs(spec: OpSpec, case: Case, dtype: torch.dtype, target: Target) -> list[Any]:
    """As the cases' inputs, but what a backward is given comes from the backend: the reference would take hours."""
    if spec.forward is None:
        return make_inputs(spec, case, dtype, device=target.device)
    args = make_inputs(spec.forward, case, dtype, device=target.device)
    outputs = target.call(spec.forward, args)
    a = spec.forward.bind(args) | {n: outputs[n] for n in spec.forward.saved}
    given = {f"grad_{n}": torch.randn_like(t) for n, t in outputs.items() if t.is_floating_point() and t.numel()}
    return [(a | given).get(name) for name in spec.arguments]


def in_turns(run: Run, ceiling: Ceiling | None, device: str) -> Pairs:
    """Seconds of a run, and of the ceiling right after it; a first pair of short runs is not counted."""

    def pair(repeats: int, beside: int) -> tuple[float, float]:
        return seconds(run, device, repeats), ceiling.seconds(device, beside) if ceiling else math.nan

    first = pair(1, 1)
    pairs: Pairs = [first] if first[0] > LONG_SECONDS else []
    repeats, beside = (_repeats(once) for once in first)
    while len(pairs) < LEAST_PAIRS or (len(pairs) < MOST_PAIRS and sum(p[0] for p in pairs) * repeats < LEAST_SECONDS):
        pairs.append(pair(repeats, beside))
    return pairs


def _repeats(once: float) -> int:
    return 1 if math.isnan(once) else max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-9)))


def shares(pairs: Pairs, ceiling: Ceiling, amount: float) -> list[float]:
    """Of each pair the time that the ceiling allows for an amount over the time taken."""
    return [amount / ceiling.amount * beside / own for own, beside in pairs]


def time_case(target: Target, ceilings: Ceilings, spec: OpSpec, case: Case, dtype: torch.dtype) -> Timing:
    """Times one benchmark case on the backend, never on the reference."""
    blank = Timing(spec.name, case.id, _word(dtype))
    if spec.name not in target.kernels:
        return replace(blank, message=target.refused[spec.name])
    try:
        return _timed(blank, target, ceilings, spec, _bench_inputs(spec, case, dtype, target))
    except (UnsupportedOp, RuntimeError) as error:
        if lost_device(error):
            raise
        return replace(blank, message=str(error).splitlines()[0])


def _timed(blank: Timing, target: Target, ceilings: Ceilings, spec: OpSpec, args: list[Any]) -> Timing:
    threads, a = torch.get_num_threads(), spec.bind(args)
    launch, outputs = target.prepare(spec, args, threads)
    read, written = _bytes(args), _bytes((*outputs, *(a[name] for name in spec.mutates)))
    work = spec.flops(a) if spec.flops else 0.0
    multiplied = [a[name] for name in spec.products or tuple(spec.inputs)[:1]]
    bound, ceiling = _binding(ceilings, ceilings.copy(read, written, fresh=False), read + written, work, multiplied)
    pairs = in_turns(launch, ceiling, ceilings.device)
    own = statistics.median(pair[0] for pair in pairs)
    timing = replace(
        blank,
        milliseconds=1e3 * own,
        gflops=work / own / 1e9 if work else None,
        gbytes_per_s=(read + written) / own / 1e9,
        bound=bound,
    )
    if ceiling is None:
        return timing
    found = shares(pairs, ceiling, work if bound == "compute" else read + written)
    timing = replace(
        timing,
        ceiling=ceiling.name,
        peak=ceiling.amount / statistics.median(pair[1] for pair in pairs) / 1e9,
        share=statistics.median(found),
        spread=(min(found), max(found)),
    )
    if bound == "compute":
        return timing
    fresh = ceilings.copy(read, written, fresh=True)
    pairs = in_turns(lambda: target.prepare(spec, args, threads)[0](), fresh, ceilings.device)
    return replace(
        timing,
        fresh_milliseconds=1e3 * statistics.median(pair[0] for pair in pairs),
        fresh_share=statistics.median(shares(pairs, fresh, read + written)),
    )


def _bytes(values: Iterable[Any]) -> int:
    return sum(t.numel() * t.itemsize for t in values if isinstance(t, Tensor))


def _binding(
    ceilings: Ceilings, copy: Ceiling, moved: float, work: float, multiplied: Sequence[Tensor]
) -> tuple[str, Ceiling | None]:
    """What limits a case, and its ceiling; neither is known where there is no ceiling for its products."""
    if not work:
        return "memory", copy
    products = ceilings.products(narrowest(multiplied))
    if products is None:
        return "", None
    least = {c: amount / c.amount * c.seconds(ceilings.device) for c, amount in ((copy, moved), (products, work))}
    return ("compute", products) if least[products] > least[copy] else ("memory", copy)


def serve_bench(connection: Connection, backend: str, modules: Sequence[str], threads: int, ops: Sequence[str]) -> None:
    """The body of the process that times: sends one timing a case, then None."""
    torch.set_num_threads(threads)
    for module in modules:
        import_module(module)
    target = open_target(backend)
    ceilings = Ceilings(target.device, threads)
    for case in bench_cases(ops):
        connection.send(time_case(target, ceilings, *case))
    connection.send(None)


def run_bench(
    settings: Settings,
    threads: int,
    ops: Sequence[str],
    progress: Callable[[Timing], None],
    complain: Callable[[str], None],
) -> list[Timing]:
    """Times every benchmark case in a process of its own; one that crashes or hangs leaves the rest untimed.

    Args:
        settings: Where.
        threads: Of that process.
        ops: Only these operators and their backwards, all if empty.
        progress: Called with each timing as it comes in.
        complain: Called with what ended the process before it had come to its end, if anything did.

    Returns:
        A timing for each case.
    """
    children = Children()
    with _environment():
        child = children.start(serve_bench, settings.backend, settings.modules, threads, ops)
    timings: list[Timing] = []
    why, done = "", False
    try:
        while not done and not why:
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
                    case None:
                        done = True
    finally:
        child.close()
    planned = [Timing(s.name, c.id, _word(d), message=f"not timed: {why}") for s, c, d in bench_cases(ops)]
    if why and not done:
        count = f"{len(timings)} of {len(planned)} benchmarks"
        complain(f"the performance section ended after {count}: {why}\n{child.output.finish()}".strip())
    return timings + planned[len(timings) :]


@contextmanager
def _environment() -> Iterator[None]:
    """What the process that times inherits: no look at the values of arguments, and copies that stream."""
    tunables = ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), STREAMING)))
    wanted = {"SBHAL_CHECK": "0", "GLIBC_TUNABLES": tunables}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
