"""A whole run: batches of cases go to worker processes, and what a case does to its process costs that case alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from ..verdict.record import Record, Status
from .case import Item
from .child import LOOK_SECONDS, Children, Gone
from .pool import Worker, batches_of
from .settings import Settings
from .target import Opened
from .worker import blank, serve

START_TIMEOUT = 120.0
END_TIMEOUT = 60.0
STARTS = 2
MIB = 1 << 20


class Unavailable(RuntimeError):
    """The backend isn't installed or finds no device: there is nothing to run."""


class NotStarted(RuntimeError):
    """No worker process comes to the point of running a case."""


class Run:
    """Worker processes, and the records that have come from them.

    Args:
        settings: Where and how.

    Attributes:
        keep: Called with each record as it comes in, once for each item.
        doubt: Called with the record of a case that was lost in a process that had run others, and is to run alone.
        complain: Called with what is wrong beyond single cases: memory that grows, processes that end badly.
        records: What has come in, by id; put there what need not be run again.
        suspects: What ``doubt`` was called with and has no record yet, by id; put there what an earlier run has left.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keep: Callable[[Record], None] = lambda record: None
        self.doubt: Callable[[Record], None] = lambda record: None
        self.complain: Callable[[str], None] = lambda problem: None
        self.records: dict[str, Record] = {}
        self.suspects: dict[str, Record] = {}
        self._batches: deque[deque[Item]] = deque()
        self._children = Children()
        self._workers: list[Worker] = []
        self._failed_starts, self._why = 0, ""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for worker in self._workers:
            worker.child.close()
        self._workers.clear()

    def start(self) -> None:
        """Lets the workers begin to open the backend."""
        self._start(self.settings.jobs)

    def describe(self, **about: Any) -> tuple[Opened, dict[str, Any]]:
        """The first worker to have opened the backend says what it is.

        Args:
            about: Keywords of :func:`report.describe`.

        Returns:
            What the run is planned by, and the head of the report.

        Raises:
            Unavailable: The backend isn't installed or finds no device; the message gives the reason.
            NotStarted: A process that opens the backend doesn't live; the message says how it ends and what it printed.
        """
        while True:
            self._start(1)
            if not any(w.base and w.owes for w in self._workers):
                for worker in [w for w in self._workers if w.base][:1]:
                    worker.ask(about)
            for _, word, value in self._listen():
                if word == "described":
                    return value  # type: ignore[no-any-return]

    def finish(self, items: Iterable[Item]) -> None:
        """Runs all items that have no record yet.

        Raises:
            Unavailable, NotStarted: As :meth:`describe`; what has a record by then keeps it.
        """
        left = [item for item in items if item.id not in self.records]
        self._batches = deque(batches_of(left, self.suspects))
        for worker in list(self._workers):
            if worker.base:
                self._feed(worker)
        while self._batches or self._workers:
            busy = sum(bool(w.items or w.running) for w in self._workers)
            self._start(min(self.settings.jobs, len(self._batches) + busy))
            for worker, word, _ in self._listen():
                if word == "ready" and worker in self._workers:  # it may have been lost by what came after
                    self._feed(worker)

    def results(self, items: Sequence[Item], otherwise: str) -> list[Record]:
        """The records in the order of ``items``; what has none was not run, for the reason ``otherwise``."""
        known = self.suspects | self.records
        return [known.get(item.id) or blank(item, otherwise) for item in items]

    # ---- processes

    def _start(self, count: int) -> None:
        s = self.settings
        while len(self._workers) < count:
            if self._failed_starts >= STARTS:
                if self._workers:
                    return  # those that live may do the rest
                raise NotStarted(f"no worker for backend {s.backend!r} starts: {self._why}")
            self._workers.append(Worker(self._children.start(serve, s.backend, s.modules, s.seed, s.threads)))

    def _listen(self) -> list[tuple[Worker, str, Any]]:
        """Waits a little; deals with what workers say of cases, with silence and with greed; returns what they said."""
        found = []
        for child, message in self._children.listen(LOOK_SECONDS):
            worker = next((w for w in self._workers if w.child is child), None)
            if worker is None:
                continue  # it was lost by what it said before
            if isinstance(message, Gone):
                self._lose(worker, Status.CRASH, message.cause)
            elif not worker.expects(message):
                self._lose(worker, Status.CRASH, "the process sent what no worker sends at that point")
            else:
                self._hear(worker, *message)
                found.append((worker, *message))
        for worker in list(self._workers):
            if worker.silent() > (limit := self._patience(worker)):
                worker.child.abort()
                self._lose(worker, Status.TIMEOUT, f"no answer within {limit:g} s")
            elif worker.running and worker.grown() > self.settings.memory * MIB:
                self._stop_growth(worker)
        return found

    def _patience(self, worker: Worker) -> float:
        return self.settings.timeout if worker.running else START_TIMEOUT

    def _hear(self, worker: Worker, word: str, value: Any) -> None:
        worker.since, worker.owes = time.monotonic(), word not in ("ready", "described")
        if word == "unavailable":
            raise Unavailable(value)
        if word == "ready" and not worker.base:
            worker.base = worker.before = worker.child.memory()
        elif word in ("start", "ready"):
            self._settle(worker)
        if word == "start":
            worker.running = worker.items.popleft()
        elif word == "done":
            record, memory = value
            if record.status == Status.DEVICE_LOST:
                return self._lose(worker, Status.DEVICE_LOST, record.message)
            worker.running, worker.done = None, record
            worker.most = max(worker.most, (memory - worker.before, record.id))
            worker.before = memory

    def _settle(self, worker: Worker) -> None:
        """The process lives on after a case: its record holds."""
        if worker.done:
            self._failed_starts = 0
            worker.history.append(worker.done.id)
            self._keep(worker.done)
            worker.done = None

    def _feed(self, worker: Worker) -> None:
        if grown := worker.grown() > self.settings.memory * MIB:
            self._report_growth(worker)
        batch = next((b for b in self._batches if not (worker.history and b[0].id in self.suspects)), None)
        if batch is None or grown:
            return self._retire(worker)
        self._batches.remove(batch)
        worker.items = batch
        worker.ask(list(worker.items))

    def _retire(self, worker: Worker) -> None:
        """Lets a process end in its own way, which is a case's business as well."""
        self._workers.remove(worker)
        worker.child.send(None)
        hangs = not worker.child.ended(END_TIMEOUT)
        if hangs:
            worker.child.abort()
        cause = f"it had not ended after {END_TIMEOUT:g} s" if hangs else worker.child.cause_of_death()
        worker.child.close()
        if hangs or worker.child.process.exitcode:
            self.complain(
                f"a worker process had run {len(worker.history)} cases and was to end: {cause}\n"
                f"{worker.child.output.finish()}".strip()
            )

    # ---- processes that are lost

    def _lose(self, worker: Worker, status: Status, cause: str) -> None:
        """A process is given up: the case that it ran has that status, the rest of its batch runs in another."""
        output = self._remove(worker)
        printed = f"; the last it printed:\n{output}" if output.strip() else ""
        if worker.running:
            lost = replace(blank(worker.running), status=status, message=cause, output=output)
            self._blame(worker, lost)
        elif worker.done:
            passed = f"its own result was {worker.done.status.value}; after it, before the next case, {cause}"
            self._keep(replace(worker.done, status=status, message=passed, output=output))
        elif worker.history:
            count, last = len(worker.history), worker.history[-1]
            self.complain(
                f"a worker process had run {count} cases, the last {last}, and was to run more: {cause}{printed}"
            )
        else:
            self._failed_starts += 1
            self._why = f"{cause}{printed}"
            self.complain(f"a worker process for backend {self.settings.backend!r} did not start: {self._why}")
        self._put_back(worker)

    def _remove(self, worker: Worker) -> str:
        """Ends a process that may have ended; returns the last that it printed."""
        self._workers.remove(worker)
        worker.child.close()
        return worker.child.output.finish()

    def _put_back(self, worker: Worker) -> None:
        if worker.items:
            self._batches.appendleft(worker.items)

    def _blame(self, worker: Worker, lost: Record) -> None:
        """A case that had a process to itself is to blame; another is run again, alone, to see if it is."""
        assert worker.running is not None
        if lost.status == Status.TIMEOUT or not worker.history or lost.id in self.suspects:
            return self._keep(lost)
        after = f"{lost.message}, after {len(worker.history)} others in the same process, the last {worker.history[-1]}"
        self.suspects[lost.id] = replace(lost, message=after)
        worker.items.appendleft(worker.running)
        self.doubt(self.suspects[lost.id])

    def _stop_growth(self, worker: Worker) -> None:
        """A process has grown too much: in this case, or little by little before it."""
        assert worker.running is not None
        held = worker.child.memory()
        worker.most = max(worker.most, (held - worker.before, worker.running.id))
        if held - worker.before > self.settings.memory * MIB:
            grown = f"the process was ended when the case had grown it by {(held - worker.before) // MIB} MiB"
            return self._lose(worker, Status.CRASH, f"{grown}, {self.settings.memory} MiB are allowed")
        self._report_growth(worker)
        worker.items.appendleft(worker.running)
        self._remove(worker)
        self._put_back(worker)

    def _report_growth(self, worker: Worker) -> None:
        most, where = worker.most
        self.complain(
            f"memory leaks: a worker process grew by {worker.grown() // MIB} MiB in {len(worker.history)} cases, "
            f"{most // MIB} MiB of it in {where}, and was replaced; {self.settings.memory} MiB are allowed"
        )

    # ---- records

    def _keep(self, record: Record) -> None:
        first = self.suspects.pop(record.id, None)
        if first and record.status not in (Status.CRASH, Status.DEVICE_LOST):
            alone = f"alone in a new process it ends with {record.status.value}"
            reason = "an earlier case does the damage, or this one fails now and then"
            record = replace(first, message=f"{first.message}; {alone}: {reason}")
        if record.broken:
            record = replace(record, reproduce=self.settings.reproduce(record.id))
        self.records[record.id] = record
        self.keep(record)


def run(
    items: Sequence[Item], settings: Settings, keep: Callable[[Record], None] = lambda record: None
) -> list[Record]:
    """Runs all items and returns their records in the same order.

    Args:
        items: What to run.
        settings: Where and how.
        keep: Called with each record as it comes in.

    Raises:
        Unavailable: The backend isn't installed or finds no device; the message gives the reason.
        NotStarted: No worker process lives long enough to run a case.
    """
    with Run(settings) as running:
        running.keep = keep
        running.finish(items)
        return running.results(items, "")
