"""Runs items on the backend: in this process, or as the child that a crash or a hang costs one case of."""

from __future__ import annotations

import json
import os
import re
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch

from ...errors import BackendUnavailable, DeviceError, UnsupportedOp
from .. import report
from ..checks import BACKEND_CHECKS, CHECKS, BackendContext, Context
from ..report.files import json_of
from ..verdict.judge import Judgement, Mismatch
from ..verdict.record import BACKEND, Record, Status
from .case import Item, torch_dtype
from .child import resident
from .target import Lied, NotRun, Target, open_target

MESSAGE_LIMIT = 4000

DEVICE_LOST = (DeviceError, getattr(torch, "AcceleratorError", DeviceError))
# Before it had AcceleratorError torch said so in words, which also begin what BLAS says of a call that it refuses.
LOST_IN_WORDS = re.compile(r"(CUDA|HIP) error(?!: \w*BLAS_STATUS)")


class Session:
    """A backend opened for a run, and the oracle results that cases of one operator share.

    Args:
        target: The backend.
        seed: Of all inputs.
        modules: What a process imports first for the backend to be known.
    """

    def __init__(self, target: Target, seed: int, modules: Sequence[str] = ()) -> None:
        self.target, self.seed, self.modules = target, seed, tuple(modules)
        self._op, self._known = "", {}  # type: str, dict[Any, Any]

    def run(self, item: Item) -> Record:
        """Runs one case; whatever it raises becomes its status."""
        if item.op != self._op:
            self._op, self._known = item.op, {}
        record = blank(item)
        if item.op != BACKEND and item.op not in self.target.kernels:
            return replace(record, status=Status.UNSUPPORTED, message=self.target.refused[item.op])
        started = time.perf_counter()
        outcome = self._outcome(item)
        return replace(record, seconds=round(time.perf_counter() - started, 4), **outcome)

    def _check(self, item: Item) -> Judgement | None:
        if item.op == BACKEND:
            BACKEND_CHECKS[item.check].run(BackendContext(self.target, self.seed, item.part, self.modules))
            return None
        spec, dtype = item.spec, torch_dtype(item.dtype)
        context = Context(self.target, spec, spec.cases[item.case], dtype, self.seed, item.part, self._known)
        return CHECKS[item.check].run(context)

    def _outcome(self, item: Item) -> dict[str, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self._check(item)
        except UnsupportedOp as error:
            return {"status": Status.UNSUPPORTED, "message": str(error)[:MESSAGE_LIMIT]}
        except NotRun as error:
            return {"status": Status.NOT_RUN, "message": str(error)[:MESSAGE_LIMIT]}
        except Lied as error:
            return {"status": Status.LIED, "message": str(error)[:MESSAGE_LIMIT]}
        except Mismatch as error:
            return {"status": Status.FAIL, "message": str(error)[:MESSAGE_LIMIT], "worst": error.worst}
        except Exception as error:
            where = "".join(traceback.format_exception(error))[-MESSAGE_LIMIT:]
            status = Status.DEVICE_LOST if lost_device(error) else Status.FAIL
            return {"status": status, "message": f"{type(error).__name__}: {error}"[:500] + f"\n{where}"}
        return {"status": Status.PASS, **(vars(found) if found else {})}


def lost_device(error: Exception) -> bool:
    """Whether an error says that the device answers no more."""
    in_words = isinstance(error, RuntimeError) and LOST_IN_WORDS.match(str(error))
    return isinstance(error, DEVICE_LOST) or bool(in_words)


def blank(item: Item, message: str = "") -> Record:
    """The record of a case that has not run."""
    return Record(
        id=item.id,
        op=item.op,
        check=item.check,
        part=item.part,
        dtype=item.dtype,
        case=item.case_id,
        status=Status.NOT_RUN,
        level=item.level,
        message=message,
    )


def serve(connection: Connection, backend: str, modules: Sequence[str], seed: int, threads: int) -> None:
    """The body of a worker process.

    Says ``("ready", None)``, or ``("unavailable", reason)`` and ends. Then it answers a dict, the keywords of
    :func:`report.describe`, with ``("described", (opened, head of the report))`` or as above; a list of items with
    ``("start", item id)`` and ``("done", (record, bytes of memory held))`` for each, then ``("ready", None)``; None by
    its end.
    """
    torch.set_num_threads(threads)
    try:
        for module in modules:
            import_module(module)
        session = Session(open_target(backend), seed, modules)
    except (BackendUnavailable, ModuleNotFoundError) as error:
        return connection.send(("unavailable", str(error)))
    except Exception as error:
        return connection.send(("unavailable", f"backend {backend!r} does not open: {type(error).__name__}: {error}"))
    connection.send(("ready", None))
    while (request := connection.recv()) is not None:
        if isinstance(request, dict):
            try:
                about = report.describe(session.target.backend, **request)
                plain = json.loads(json_of(about))  # a backend's own types are for its process alone
                connection.send(("described", (session.target.opened(), plain)))
            except Exception as error:
                why = f"backend {backend!r} cannot be described: {type(error).__name__}: {error}"
                return connection.send(("unavailable", why))
            continue
        for item in request:
            connection.send(("start", item.id))
            record = session.run(item)
            connection.send(("done", (record, resident(os.getpid()))))
            if record.status == Status.DEVICE_LOST:
                os._exit(1)  # whatever runs on it now, the end of this process too, may hang
        connection.send(("ready", None))
