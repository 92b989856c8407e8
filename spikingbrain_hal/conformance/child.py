"""A process that may crash, hang, print without end or eat memory, and leaves nothing behind when it is closed."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TAIL_BYTES = 4096
CHUNK_BYTES = 1 << 16
STACK_SECONDS = 2.0
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


class Child:
    """A spawned process, the connection to it, and the last that it printed.

    Args:
        body: Called in the process with its end of the connection and ``arguments``; must be importable.
        arguments: Further arguments, which can be pickled.
    """

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
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

    def send(self, message: Any) -> None:
        """Sends, unless the process is gone: that is heard when it is listened to."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def memory(self) -> int:
        """Bytes of memory that the process holds, 0 once it is gone."""
        return resident(self.process.pid)

    def abort(self) -> None:
        """Lets a process that answers no more write where it hangs, and end by that."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGABRT)
            self.process.join(STACK_SECONDS)

    def close(self) -> None:
        """Ends the process, and all that it has started, by force if it has not ended."""
        if self.process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()

    def cause_of_death(self) -> str:
        """How the process ended, which it has."""
        self.process.join()
        code = self.process.exitcode
        if code is not None and code < 0:
            known = -code in set(signal.Signals)
            return f"the process was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
        return f"the process ended with exit code {code}"


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
