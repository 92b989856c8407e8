"""The worker processes of a run: what each is doing, and what there is to do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..verdict.record import Record
from .case import Item
from .child import Child
from .target import Opened

BATCH = 40


@dataclass
class Worker:
    """A child process and what it is doing.

    Attributes:
        items: What is left of its batch.
        running: The item that it runs.
        done: The last record that it gave, until its process has shown that it survived the case.
        history: The ids of what it has run, the one that runs now not included.
        base, before: Bytes of memory held when it was ready first, and before the item that it runs.
        most: The largest growth of one case, and the id of that.
        since: When it was last heard of, or asked.
        owes: Whether it is to say something: that it is ready, at first.
    """

    child: Child
    items: deque[Item] = field(default_factory=deque)
    running: Item | None = None
    done: Record | None = None
    history: list[str] = field(default_factory=list)
    base: int = 0
    before: int = 0
    most: tuple[int, str] = (0, "")
    since: float = field(default_factory=time.monotonic)
    owes: bool = True

    def ask(self, request: Any) -> None:
        """Sends what is to be answered."""
        self.since, self.owes = time.monotonic(), True
        self.child.send(request)

    def silent(self) -> float:
        """Seconds since it has owed an answer, 0 if it owes none."""
        return time.monotonic() - self.since if self.owes else 0.0

    def expects(self, message: Any) -> bool:
        """Whether a message is one that a worker sends at this point of its batch."""
        if not self.owes:
            return False
        match message:
            case ("ready", None):
                return not self.running and not self.items
            case ("start", id):
                return not self.running and bool(self.items) and self.items[0].id == id
            case ("done", (Record(id=id), int())):
                return self.running is not None and self.running.id == id
            case ("described", (Opened(), dict())) | ("unavailable", str()):
                return not self.running and not self.items and not self.history
        return False

    def grown(self) -> int:
        """Bytes by which the process has grown since it was ready."""
        return max(self.before, self.child.memory()) - self.base


def batches_of(items: Iterable[Item], first: Container[str]) -> list[deque[Item]]:
    """Runs of items of one operator, so that a worker's oracle results serve the next case too.

    Args:
        items: What to run.
        first: Ids of items that begin a batch.
    """
    found: list[deque[Item]] = []
    for item in items:
        if not found or found[-1][0].op != item.op or len(found[-1]) >= BATCH or item.id in first:
            found.append(deque())
        found[-1].append(item)
    return found
