"""Processes that may crash, hang, fall silent, print without end or eat memory, and that leave nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

TAIL_BYTES = 4096
CHUNK_BYTES = 1 << 16
MESSAGE_BYTES = 1 << 26
STACK_SECONDS = 2.0
LOOK_SECONDS = 0.5
POLL_SECONDS = 0.01
PARTING_SECONDS = 10.0
PAGE = os.sysconf("SC_PAGE_SIZE")
PR_SET_PDEATHSIG = 1


class Tail:
    """The last of what comes through a pipe: everything is read at once, so that a writer never waits, and little kept.

    Attributes:
        total: How many bytes have come.
    """

    def __init__(self, reader: Connection, limit: int = TAIL_BYTES) -> None:
        self.total = 0
        self._reader, self._limit, self._kept = reader, limit, b""
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._reader:
            while chunk := os.read(self._reader.fileno(), CHUNK_BYTES):
                self._kept = (self._kept + chunk)[-self._limit :]
                self.total += len(chunk)

    def finish(self) -> str:
        """The text kept, once the writers are gone."""
        self._thread.join(STACK_SECONDS)
        return self.text()

    def text(self) -> str:
        """The text kept so far; what was dropped before it is counted."""
        dropped = self.total - len(self._kept)
        start = f"[{dropped} bytes before this were dropped]\n" if dropped > 0 else ""
        return start + self._kept.decode(errors="replace")


@dataclass(frozen=True)
class Gone:
    """The last that is heard of a process: nothing more comes from it.

    Attributes:
        cause: How it ended, or what it did with its connection.
    """

    cause: str


class Child:
    """A spawned process, the connection to it, and the last that it printed; started by :class:`Children`.

    Args:
        heard: Where each message from the process is put, with this object; a :class:`Gone` is the last.
        body: Called in the process with its end of the connection and ``arguments``; must be importable.
        arguments: Further arguments, which can be pickled.

    Attributes:
        closed: Whether it has been closed.
    """

    def __init__(self, heard: SimpleQueue[tuple[Child, Any]], body: Callable[..., None], *arguments: Any) -> None:
        self.closed = False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        reader, writer = context.Pipe(duplex=False)
        self.process = context.Process(target=_enter, args=(os.getpid(), body, writer, theirs, *arguments))
        # A Ctrl-C is for this process to handle; the mask is inherited, and holds from the child's first instruction.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        writer.close()
        self.output = Tail(reader)
        self._reading = threading.Thread(target=self._read, args=(heard,), daemon=True)
        self._reading.start()

    def _read(self, heard: SimpleQueue[tuple[Child, Any]]) -> None:
        """Reads in a thread of its own: half a message keeps waiting whoever reads it."""
        try:
            while True:
                heard.put((self, pickle.loads(self._connection.recv_bytes(MESSAGE_BYTES))))
        except EOFError:
            heard.put((self, Gone("the process closed its connection and lived on")))
        except Exception as error:  # what a process wrote into its connection while it died
            what = f"{type(error).__name__}: {error}"
            heard.put((self, Gone(f"the process sent what cannot be read ({what}) and lived on")))

    def send(self, message: Any) -> None:
        """Sends, unless the process is gone: that is heard when it is listened to."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def memory(self) -> int:
        """Bytes of memory that the process holds, 0 once it is gone."""
        return resident(self.process.pid)

    def ended(self, seconds: float = STACK_SECONDS) -> bool:
        """Whether the process ends within so many seconds.

        It is asked for itself: what the standard library waits for is a descriptor that a process can close and live,
        or leave open to what it has started.
        """
        deadline = time.monotonic() + seconds
        while self.process.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def abort(self) -> None:
        """Lets a process that answers no more, or has stopped itself, write where it hangs, and end by that."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGABRT)
            os.kill(self.process.pid, signal.SIGCONT)
            self.ended()

    def kill(self) -> None:
        """Ends the process, and all that it has started in its group."""
        if self.process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def close(self) -> None:
        """Ends the process, and all that it has started, by force if it has not ended; a second time does nothing."""
        if self.closed:
            return
        self.closed = True
        self.kill()
        self.ended()  # one that hangs in its driver ends by nothing
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)  # wakes the reader, whoever else may hold the other end
        self._reading.join()
        self._connection.close()

    def cause_of_death(self, otherwise: str = "") -> str:
        """How the process ended; of one that lives, which is aborted, ``otherwise``."""
        if self.process.is_alive():
            self.abort()
            return otherwise
        code = self.process.exitcode
        if code is not None and code < 0:
            known = -code in set(signal.Signals)
            return f"the process was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
        return f"the process ended with exit code {code}"


class Children:
    """Processes that run at once, any of which may speak next."""

    def __init__(self) -> None:
        self._heard: SimpleQueue[tuple[Child, Any]] = SimpleQueue()
        self._living: list[Child] = []
        self._parting: dict[Child, float] = {}  # since when, of those that have ended, or whose connection has
        self._silent: dict[Child, str] = {}  # why nothing more comes

    def start(self, body: Callable[..., None], *arguments: Any) -> Child:
        """Starts one; see :class:`Child`."""
        child = Child(self._heard, body, *arguments)
        self._living.append(child)
        return child

    def listen(self, seconds: float) -> list[tuple[Child, Any]]:
        """What they have said, in order, each message with who said it; waits for some, no longer than ``seconds``.

        The last of a process is a :class:`Gone`: it has ended, has closed its connection, or has written into it what
        is no message, and is closed then. Of one that has been closed nothing is heard.
        """
        deadline = time.monotonic() + seconds
        while True:
            look = POLL_SECONDS if self._parting else LOOK_SECONDS
            found = self._take(min(look, max(0.0, deadline - time.monotonic()))) + self._parted()
            if found or time.monotonic() >= deadline:
                return found

    def _take(self, seconds: float) -> list[tuple[Child, Any]]:
        try:
            taken = [self._heard.get(timeout=seconds)]
        except Empty:
            return []
        taken += [self._heard.get() for _ in range(self._heard.qsize())]
        self._silent |= {child: message.cause for child, message in taken if isinstance(message, Gone)}
        return [(child, message) for child, message in taken if not child.closed and not isinstance(message, Gone)]

    def _parted(self) -> list[tuple[Child, Any]]:
        """Those that have ended and said all, and those that have had their time to do both."""
        now = time.monotonic()
        self._living = [child for child in self._living if not child.closed]
        ended = {child for child in self._living if not child.process.is_alive()}
        for child in ended:
            child.kill()  # what it has started and may hold its connection open
        silent = self._silent.keys() & self._living
        self._parting = {child: self._parting.get(child, now) for child in ended | silent}
        late = {child for child, since in self._parting.items() if now - since > PARTING_SECONDS}
        return [(child, self._part(child)) for child in self._living if child in ended & silent | late]

    def _part(self, child: Child) -> Gone:
        cause = child.cause_of_death(self._silent.get(child, ""))
        child.close()
        return Gone(cause)


def resident(pid: int | None) -> int:
    """Bytes of memory that a process holds, 0 if there is none of this id."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _enter(parent: int, body: Callable[..., None], writer: Connection, connection: Connection, *arguments: Any) -> None:
    """What a child does first: dies with its parent, leads a group, drops no core, prints into the pipe."""
    os.setpgid(0, 0)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    writer.close()
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0)  # by lines, for C too: a crash loses no more
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    body(connection, *arguments)
