"""Backends that misbehave on purpose, for the runner: importing this registers them, as ``--import`` does."""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import signal
import struct
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from spikingbrain_hal import register_backend
from spikingbrain_hal.backend import Backend, DeviceProperties
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.errors import DeviceError, UnsupportedOp
from spikingbrain_hal.testing import python_backend

NAME = "hostile"
LEAKED = 80 << 20
LIBC = ctypes.CDLL(None)
_state: dict[str, Any] = {"leaked": [], "damaged": False}


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(3600)


def lose_device() -> None:
    raise DeviceError("the device fell off the bus")


def leave() -> None:
    """Prints a lot, in C and in Python, and ends the process as if all were well."""
    page = b"x" * (1 << 20)
    for _ in range(2100):
        os.write(1, page)
    LIBC.puts(b"this stands in a buffer of C's")
    print("these are the last words")
    LIBC._exit(0)


def leak() -> None:
    _state["leaked"].append(torch.ones(LEAKED // 4))


def misbehave(op: str, how: Callable[[], None], when: Callable[[Any], bool] = lambda x: x.dim() == 1) -> Any:
    """The reference of an operator, but ``how`` comes first for some inputs."""

    def run(*args: Any) -> Any:
        if when(args[0]):
            how()
        return OPERATORS[op].reference(*args)

    return run


def sometimes_nan(*args: Any) -> Any:
    y = OPERATORS["spike_linear"].reference(*args)
    return torch.where(torch.rand(()) < 0.5, torch.full_like(y, torch.nan), y)


def refuse(*args: Any) -> Any:
    raise UnsupportedOp("not today")


register_backend(
    python_backend(
        NAME,
        {
            "spike_encode": misbehave("spike_encode", os.abort),
            "spike_quantize": misbehave("spike_quantize", hang),
            "spike_expand": misbehave("spike_expand", segfault),
            "spike_collapse": misbehave("spike_collapse", leave, lambda x: x.dim() == 2),
            "lif_scan": misbehave("lif_scan", lose_device, lambda x: x.dim() == 2),
            "spike_linear": sometimes_nan,
            "gated_linear_attention_step_": refuse,
        },
    )
)


# ---- what shows only later


def damage() -> None:
    _state["damaged"] = True


def crash_if_damaged(*args: Any) -> Any:
    if _state["damaged"]:
        os.abort()
    return OPERATORS["spike_quantize"].reference(*args)


register_backend(
    python_backend(
        "damaging",
        {"spike_encode": misbehave("spike_encode", damage, lambda x: True), "spike_quantize": crash_if_damaged},
    )
)


def _die_after_saying(word: str) -> None:
    send = Connection.send

    def send_and_die(self: Connection, message: Any) -> None:
        send(self, message)
        if message[0] == word:
            segfault()

    Connection.send = send_and_die  # type: ignore[method-assign]


for _name, _word in (("dies_in_cleanup", "done"), ("dies_between_batches", "ready")):
    register_backend(
        python_backend(_name, {"spike_encode": misbehave("spike_encode", partial(_die_after_saying, _word))})
    )


def _end_badly() -> None:
    if not _state.setdefault("registered", False):
        _state["registered"] = True
        atexit.register(segfault)


register_backend(python_backend("ends_badly", {"spike_encode": misbehave("spike_encode", _end_badly, lambda x: True)}))
register_backend(
    python_backend(
        "leaking",
        {
            "spike_encode": misbehave("spike_encode", leak, lambda x: True),
            "spike_quantize": misbehave("spike_quantize", lambda: [leak() for _ in range(1000)] and None),
        },
    )
)


register_backend(
    python_backend(
        "dies_when_timed",
        {
            "spike_collapse": misbehave("spike_collapse", os.abort, lambda x: True),
            "lif_scan": misbehave("lif_scan", lose_device, lambda x: True),
            "spike_expand": misbehave("spike_expand", lambda: close_everything(), lambda x: True),
            "spike_encode": refuse,
        },
    )
)
register_backend(
    python_backend("slow", {"spike_encode": misbehave("spike_encode", lambda: time.sleep(0.1), lambda x: True)})
)


# ---- what the whole backend promises


def nosy_plan(*args: Any) -> int:
    """Looks at the values of its inputs."""
    return int(args[0].sum().isnan())


def careless(*args: Any) -> Any:
    """Takes memory of its own, and goes on where there is none."""
    try:
        return OPERATORS["spike_quantize"].reference(*args)
    except RuntimeError:
        return args[0]


def needs_alignment(*args: Any) -> Any:
    spikes, *rest = OPERATORS["lif_scan"].reference(*args)
    return (spikes if args[0].data_ptr() % 16 == 0 else spikes + 1, *rest)


def resentful_plan(*args: Any) -> int:
    if args[0].dtype == torch.bool:
        _state["resentful"] = True
    OPERATORS["spike_linear"].check(args)
    return 0


def resentful(*args: Any) -> Any:
    y = OPERATORS["spike_linear"].reference(*args)
    return y + 1 if _state.get("resentful") else y


def one_at_a_time(*args: Any) -> Any:
    """Keeps its input where the next call finds it."""
    _state["input"] = args
    time.sleep(0.02)
    return OPERATORS["spike_expand"].reference(*_state["input"])


def _load_unsound() -> Any:
    print("hello")
    sound = python_backend(
        "sound",
        {
            "spike_quantize": careless,
            "lif_scan": needs_alignment,
            "spike_linear": resentful,
            "spike_expand": one_at_a_time,
        },
    ).load()
    return {
        **sound,
        "spike_encode": sound["spike_encode"]._replace(plan=nosy_plan),
        "spike_linear": sound["spike_linear"]._replace(plan=resentful_plan),
        "spike_collapse": sound["spike_collapse"]._replace(version=99),
    }


register_backend(
    Backend("unsound", "test", "cpu", lambda: None, _load_unsound, lambda: DeviceProperties("x", {"a": object()}), True)
)


# ---- what only the process that opens it knows


def _abort_the_first_time() -> Any:
    """Of the processes that share a folder for it, the first dies."""
    if folder := os.environ.get("HOSTILE_FOLDER"):
        try:
            (Path(folder) / "opened").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.abort()
    return python_backend("first", {"spike_encode": OPERATORS["spike_encode"].reference}).load()


register_backend(
    Backend("dies_at_first", "test", "cpu", lambda: None, _abort_the_first_time, lambda: DeviceProperties("x"), True)
)
register_backend(
    Backend(
        "detailed",
        "test",
        "cpu",
        lambda: None,
        dict,
        lambda: DeviceProperties("x", {"dtype": torch.float32, "grid": (1, 2), "peak": float("inf")}),
        True,
    )
)


def _crash_when_loaded() -> Any:
    print("loading", flush=True)
    segfault()


register_backend(
    Backend("stillborn", "test", "cpu", lambda: None, _crash_when_loaded, lambda: DeviceProperties("none"), True)
)


# ---- what keeps others waiting


def close_everything() -> None:
    """As a library does that makes itself a daemon."""
    os.closerange(3, 4096)
    hang()


def leave_heirs(*, of_own_group: bool) -> None:
    """Dies, but what it has started lives on and holds all that it had open."""
    if os.fork():
        segfault()
    if of_own_group:
        os.setsid()
    time.sleep(30)
    os._exit(0)


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    hang()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _write_instead(written: Callable[[bytes], bytes], then: Callable[[], None]) -> None:
    """The next that the process says is written in another way."""

    def send(self: Connection, message: Any) -> None:
        os.write(self.fileno(), written(pickle.dumps(message)))
        then()

    Connection.send = send  # type: ignore[method-assign]


def framed(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def half(data: bytes) -> bytes:
    return framed(data)[: len(data) // 2]


WAITED_FOR: dict[str, Callable[[], None]] = {
    "closes": close_everything,
    "leaves_heirs": partial(leave_heirs, of_own_group=False),
    "leaves_heirs_of_own_group": partial(leave_heirs, of_own_group=True),
    "ignores_signals": ignore_signals,
    "stops": stop,
    "writes_half": partial(_write_instead, half, hang),
    "writes_half_and_dies": partial(_write_instead, half, os.abort),
    "writes_nonsense": partial(_write_instead, lambda data: framed(data[::-1]), hang),
    "writes_without_end": partial(_write_instead, lambda data: struct.pack("!iQ", -1, 1 << 50) + data, hang),
    "writes_twice": partial(_write_instead, lambda data: framed(data) * 2, hang),
}
for _name, _how in WAITED_FOR.items():
    register_backend(python_backend(_name, {"spike_encode": misbehave("spike_encode", _how)}))
