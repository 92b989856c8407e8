"""A whole run: batches of cases go to worker processes, and a crash or a hang costs one case."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait

from .case import Item
from .record import Record, Status
from .worker import blank, serve

CASE_TIMEOUT = 120.0
START_TIMEOUT = 120.0
BATCH = 40


@dataclass(frozen=True)
class Settings:
    """What a run needs to know beside its items.

    Attributes:
        backend: The backend's name.
        seed: Of all inputs.
        jobs: How many worker processes run at once.
        threads: Threads of each.
        modules: Imported by each worker first, for backends that register themselves.
        timeout: Seconds that one case may take.
    """

    backend: str
    seed: int = 0
    jobs: int = 1
    threads: int = 1
    modules: tuple[str, ...] = ()
    timeout: float = CASE_TIMEOUT

    def reproduce(self, item_id: str) -> str:
        """The command that runs one case alone."""
        settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SBHAL_") and k != "SBHAL_CHECK"}
        before = "".join(f"{name}={shlex.quote(value)} " for name, value in settings.items())
        extra = "".join(f" --import {m}" for m in self.modules)
        case = shlex.quote(item_id)
        return f"{before}sbhal conformance --backend {self.backend}{extra} --case {case} --seed {self.seed} --no-bench"


@dataclass
class Worker:
    """A child process and what it is doing."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    items: deque[Item] = field(default_factory=deque)
    running: Item | None = None
    ready: bool = False
    since: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Ends the process, by force if it doesn't listen."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


Progress = Callable[[Record], None]


def run(items: Sequence[Item], settings: Settings, progress: Progress = lambda record: None) -> list[Record]:
    """Runs all items and returns their records in the same order.

    Args:
        items: What to run.
        settings: Where and how.
        progress: Called with each record as it comes in.

    Raises:
        RuntimeError: Workers cannot be started; the message gives the reason.
    """
    return _Run(items, settings, progress).finish()


class _Run:
    def __init__(self, items: Sequence[Item], settings: Settings, progress: Progress) -> None:
        self.items, self.settings, self.progress = items, settings, progress
        self.batches = deque(_batches(items))
        self.records: dict[str, Record] = {}
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[Worker] = []

    def finish(self) -> list[Record]:
        try:
            while len(self.records) < len(self.items):
                self._staff()
                self._listen()
        finally:
            for worker in self.workers:
                worker.close()
        return [self.records[item.id] for item in self.items]

    def _staff(self) -> None:
        waiting = len(self.batches) + sum(bool(w.items or w.running) for w in self.workers)
        while len(self.workers) < min(self.settings.jobs, waiting):
            self.workers.append(self._start())

    def _start(self) -> Worker:
        ours, theirs = self.context.Pipe()
        s = self.settings
        process = self.context.Process(
            target=serve, args=(theirs, s.backend, s.modules, s.seed, s.threads), daemon=True
        )
        process.start()
        theirs.close()
        return Worker(process, ours)

    def _listen(self) -> None:
        ready = wait([w.connection for w in self.workers], timeout=1.0)
        for worker in list(self.workers):
            if worker.connection in ready:
                self._hear(worker)
            elif time.monotonic() - worker.since > self._patience(worker):
                self._lose(worker, Status.TIMEOUT, f"no answer within {self._patience(worker):g} s")

    def _patience(self, worker: Worker) -> float:
        return self.settings.timeout if worker.running else START_TIMEOUT

    def _hear(self, worker: Worker) -> None:
        try:
            word, value = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            return self._lose(worker, Status.CRASH, _cause_of_death(worker.process.exitcode))
        worker.since = time.monotonic()
        if word == "ready":
            worker.ready = True
            self._feed(worker)
        elif word == "failed":
            self._lose(worker, Status.CRASH, value)
        elif word == "start":
            worker.running = worker.items.popleft()
        else:
            worker.running = None
            self._keep(value)

    def _feed(self, worker: Worker) -> None:
        if self.batches:
            worker.items = deque(self.batches.popleft())
            worker.connection.send(list(worker.items))
        else:
            worker.connection.send(None)
            self.workers.remove(worker)
            worker.process.join()
            worker.connection.close()

    def _lose(self, worker: Worker, status: Status, message: str) -> None:
        """A worker is gone: the case it ran has that status, the rest of its batch runs in another."""
        self.workers.remove(worker)
        worker.close()
        if worker.running is not None:
            self._keep(replace(blank(worker.running), status=status, message=message))
        elif not worker.ready:
            raise RuntimeError(f"a worker for backend {self.settings.backend!r} did not start: {message}")
        if worker.items:
            self.batches.appendleft(list(worker.items))

    def _keep(self, record: Record) -> None:
        if record.broken:
            record = replace(record, reproduce=self.settings.reproduce(record.id))
        self.records[record.id] = record
        self.progress(record)


def _batches(items: Sequence[Item]) -> list[list[Item]]:
    """Runs of items of one operator, so that a worker's oracle results serve the next case too."""
    found: list[list[Item]] = []
    for item in items:
        if not found or found[-1][0].op != item.op or len(found[-1]) >= BATCH:
            found.append([])
        found[-1].append(item)
    return found


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"the process was killed by {signal.Signals(-exitcode).name}"
    return f"the process ended with exit code {exitcode}"


def default_jobs() -> int:
    """As many workers as fit the processor and a person's patience with its noise."""
    return max(1, min(4, len(os.sched_getaffinity(0))))
