"""Any arguments of all operators, by the hundred thousand: ``python -m spikingbrain_hal.conformance.run.fuzz``.

Every call must end in a result or in an error that names the operator. Calls run in worker processes, a chunk of them
each time, so a crash or a hang costs its chunk and is reported with the command that repeats it call by call.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from ...declare.inputs import io_dtypes
from ...declare.registry import OPERATORS
from ..checks.drawn import CALLS, TRACE
from ..verdict.record import Record, Status, first_line
from . import runner
from .case import Item
from .settings import CASE_TIMEOUT, Settings, default_jobs


def chunks(ops: Sequence[str], examples: int) -> list[Item]:
    """The items that draw so many calls, shared out among the operators.

    Args:
        ops: Operators, backwards too.
        examples: How many calls at least, of all operators together.
    """
    each = -(-examples // (CALLS * len(ops)))
    return [_chunk(op, str(i)) for op in ops for i in range(each)]


def _chunk(op: str, part: str) -> Item:
    return Item(op, 0, str(io_dtypes(OPERATORS[op])[0]).removeprefix("torch."), "arguments", part)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spikingbrain_hal.conformance.run.fuzz", description=__doc__)
    parser.add_argument("--backend", required=True, help="the backend to test")
    parser.add_argument("--op", action="append", choices=list(OPERATORS), metavar="OP", help="only this; repeatable")
    parser.add_argument("--examples", type=_positive, default=10_000, help="calls of all operators together")
    parser.add_argument("--seed", type=int, default=0, help="chooses the calls")
    parser.add_argument("--chunk", help="only this chunk of each operator, and print every call before it is made")
    parser.add_argument("--jobs", type=_positive, default=default_jobs(), help="worker processes at once")
    parser.add_argument("--timeout", type=float, default=CASE_TIMEOUT, help="seconds for a chunk")
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], help="module that registers the backend"
    )
    return parser


def _repeat(settings: Settings, record: Record) -> str:
    """The command that runs one chunk again."""
    modules = "".join(f" --import {m}" for m in settings.modules)
    command = f"{_parser().prog} --backend {settings.backend}{modules}"
    return f"{command} --op {record.op} --chunk {record.part} --seed {settings.seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if every call ended as it must, 1 if not, 2 if nothing could be run."""
    given = _parser().parse_args(arguments)
    os.environ.setdefault("SBHAL_CHECK", "1")
    ops = given.op or list(OPERATORS)
    if given.chunk is not None:
        os.environ[TRACE] = "1"
    items = [_chunk(op, given.chunk) for op in ops] if given.chunk is not None else chunks(ops, given.examples)
    settings = Settings(
        given.backend, seed=given.seed, jobs=given.jobs, modules=tuple(given.modules), timeout=given.timeout
    )
    started = time.monotonic()
    try:
        records = runner.run(items, settings, lambda record: _show(record, settings))
    except (runner.Unavailable, runner.NotStarted) as error:
        print(f"--backend {settings.backend}: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - started
    broken = [r for r in records if r.status != Status.PASS]
    calls = CALLS * (len(records) - len(broken))
    print(
        f"{calls} calls of {len(ops)} operators in {seconds:.0f} s, {calls / seconds:.0f} a second, seed {given.seed}"
    )
    print(f"{len(broken)} of {len(records)} chunks of {CALLS} calls failed")
    return 1 if broken else 0


def _show(record: Record, settings: Settings) -> None:
    if record.status != Status.PASS:
        reason = first_line(record.message)
        print(f"{record.status.value} {record.op}: {reason}\n  {_repeat(settings, record)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
