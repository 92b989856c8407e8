"""Runs items on the backend: in this process, or as the child that a crash or a hang costs one case of."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..errors import UnsupportedOp
from .case import Item, torch_dtype
from .checks import CHECKS, Context
from .judge import Mismatch
from .record import Record, Status
from .target import Lied, Target, open_target

MESSAGE_LIMIT = 4000


class Session:
    """A backend opened for a run, and the oracle results that cases of one operator share."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target, self.seed = target, seed
        self._op, self._known = "", {}  # type: str, dict[Any, Any]

    def run(self, item: Item) -> Record:
        """Runs one case; whatever it raises becomes its status."""
        if item.op != self._op:
            self._op, self._known = item.op, {}
        record = blank(item)
        if item.op not in self.target.kernels:
            return replace(record, status=Status.UNSUPPORTED, message=self.target.refused[item.op])
        started = time.perf_counter()
        outcome = self._outcome(item)
        return replace(record, seconds=round(time.perf_counter() - started, 4), **outcome)

    def _outcome(self, item: Item) -> dict[str, Any]:
        spec = item.spec
        context = Context(
            self.target, spec, spec.cases[item.case], torch_dtype(item.dtype), self.seed, item.part, self._known
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = CHECKS[item.check].run(context)
        except UnsupportedOp as error:
            return {"status": Status.UNSUPPORTED, "message": str(error)}
        except Lied as error:
            return {"status": Status.LIED, "message": str(error)}
        except Mismatch as error:
            return {"status": Status.FAIL, "message": str(error)[:MESSAGE_LIMIT], "worst": error.worst}
        except Exception as error:
            where = "".join(traceback.format_exception(error))[-MESSAGE_LIMIT:]
            return {"status": Status.FAIL, "message": f"{type(error).__name__}: {error}"[:500] + f"\n{where}"}
        if found is None:
            return {"status": Status.PASS}
        return {
            "status": Status.PASS,
            "worst": found.worst,
            "excused": found.excused,
            "excluded": found.excluded,
        }


def blank(item: Item) -> Record:
    """The record of a case that has not run."""
    case = item.spec.cases[item.case].id
    return Record(item.id, item.op, item.check, item.part, item.dtype, case, Status.NOT_RUN)


def serve(connection: Connection, backend: str, modules: Sequence[str], seed: int, threads: int) -> None:
    """The body of a worker process: takes batches, answers ``("start", i)`` and ``("done", record)``, ends on None."""
    torch.set_num_threads(threads)
    try:
        for module in modules:
            import_module(module)
        session = Session(open_target(backend), seed)
    except Exception as error:
        return connection.send(("failed", f"{type(error).__name__}: {error}"))
    connection.send(("ready", None))
    while (batch := connection.recv()) is not None:
        for i, item in enumerate(batch):
            connection.send(("start", i))
            connection.send(("done", session.run(item)))
        connection.send(("ready", None))
