"""How long a selection holds: calls, blocks that overlap on threads and tasks, objects used twice, the environment."""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event, Thread

import pytest
import torch

import spikingbrain_hal as hal
from spikingbrain_hal import ops, use_backend
from spikingbrain_hal.calls import dispatch, selection
from spikingbrain_hal.testing import python_backend

pytestmark = pytest.mark.usefixtures("own_selection")
NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _backends() -> Iterator[None]:
    for name in NAMES:
        hal.register_backend(python_backend(name))
    yield
    for name in NAMES:
        hal.unregister_backend(name)


def now(device_type: str = "cpu") -> str:
    return selection.current(device_type).name


class Worker:
    """A thread that enters and leaves blocks when it is told to."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)

    def enter(self, name: str) -> use_backend:
        def run() -> use_backend:
            block = use_backend(name)
            block.__enter__()
            return block

        return self.pool.submit(run).result()

    def leave(self, block: use_backend) -> None:
        self.pool.submit(block.__exit__).result()

    def now(self) -> str:
        return self.pool.submit(now).result()


@pytest.mark.parametrize("first_out", [0, 1])
def test_blocks_that_overlap_on_two_threads_do_not_disturb_each_other(first_out: int) -> None:
    before = now()
    workers = [Worker(), Worker()]
    blocks = [w.enter(name) for w, name in zip(workers, NAMES, strict=False)]
    assert [w.now() for w in workers] == ["a", "b"]
    assert now() == "b", "a thread without a block follows the last one entered"
    workers[first_out].leave(blocks[first_out])
    other = 1 - first_out
    assert workers[other].now() == workers[first_out].now() == now() == NAMES[other]
    workers[other].leave(blocks[other])
    assert {now(), *(w.now() for w in workers)} == {before}


def test_calls_run_where_their_thread_s_block_says() -> None:
    ran: list[str] = []

    def encode(name: str):  # type: ignore[no-untyped-def]
        def function(x: torch.Tensor, k: float = 3.0) -> torch.Tensor:
            ran.append(name)
            return x

        return function

    for name in ("x", "y"):
        hal.register_backend(python_backend(name, {"spike_quantize": encode(name)}))
    both_in, done = Barrier(2), []

    def run(name: str) -> None:
        with use_backend(name):
            both_in.wait()
            for _ in range(20):
                ran_before = len(ran)
                ops.spike_quantize(torch.ones(2, 3))
                assert name in ran[ran_before:]
            done.append(name)
            both_in.wait()

    threads = [Thread(target=run, args=(name,)) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("x", "y"):
        hal.unregister_backend(name)
    assert sorted(done) == ["x", "y"]
    assert ran.count("x") == ran.count("y") == 20


def test_tasks_of_one_thread_have_blocks_of_their_own() -> None:
    async def task(name: str, mine: asyncio.Event, others: asyncio.Event) -> str:
        with use_backend(name):
            mine.set()
            await others.wait()
            return now()

    async def both() -> list[str]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("a", a, b), task("b", b, a))

    before = now()
    assert asyncio.run(both()) == ["a", "b"]
    assert now() == before


@pytest.mark.parametrize("entered", list(itertools.permutations(range(3))))
def test_objects_may_be_entered_in_another_order_than_they_were_made(entered: tuple[int, ...]) -> None:
    before = now()
    made = [use_backend(name) for name in NAMES]
    assert now() == "c"
    for i in entered:
        with made[i]:
            assert now() == NAMES[i]
    assert now() == before
    made = [use_backend(name) for name in NAMES]
    for i in entered:
        made[i].__enter__()
        assert now() == NAMES[i]
    for block in made:  # and left in a third
        block.__exit__()
    assert now() == before


def test_an_object_makes_one_block() -> None:
    block = use_backend("a")
    with block, pytest.raises(RuntimeError, match=r"use_backend\('a'\) is entered again"), block:
        pass
    with pytest.raises(RuntimeError, match=r"use_backend\('a'\) is entered again"), block:
        pass
    with pytest.raises(RuntimeError, match=r"use_backend\('b'\) is left and was not entered"):
        use_backend("b").__exit__()


def test_a_call_holds_until_the_end_of_the_block_it_is_made_in() -> None:
    use_backend("a")
    assert now() == "a"
    with use_backend("b"):
        use_backend("c")
        assert now() == "c"
        with use_backend("reference"):
            assert now() == "reference"
        assert now() == "c"
    assert now() == "a"
    with pytest.raises(ZeroDivisionError), use_backend("b"):
        1 / 0  # noqa: B018
    assert now() == "a"


def test_a_call_does_not_reach_into_a_block_of_another_thread() -> None:
    worker = Worker()
    block = worker.enter("a")
    use_backend("b")
    assert worker.now() == "a"
    worker.leave(block)
    assert now() == worker.now() == "b"


def test_calls_leave_nothing_behind() -> None:
    for _ in range(100):
        use_backend("a")
        use_backend("b")
    assert len(selection._scopes["cpu"].process.made) <= 2


def test_a_failed_selection_changes_nothing() -> None:
    use_backend("a")
    for name in ("nowhere", "b"):
        with pytest.raises(hal.BackendUnavailable):
            use_backend(name, "cuda")
    assert now() == "a"


def test_a_backend_is_not_unregistered_under_a_block() -> None:
    hal.register_backend(python_backend("gone"))
    before = now()
    with use_backend("gone"):
        with pytest.raises(RuntimeError, match="'gone' is selected by a use_backend"):
            hal.unregister_backend("gone")
        assert now() == "gone"
    use_backend("gone")
    with use_backend("a"):
        hal.unregister_backend("gone")
    assert now() == before, "the end of a block brings no backend back"


def test_any_number_of_blocks_on_any_number_of_threads_ends_as_it_began() -> None:
    before, start = now(), Barrier(4)

    def run(seed: int) -> bool:
        draw, right = random.Random(seed), True
        start.wait()
        for _ in range(200):
            name, inner = draw.choice(NAMES), draw.choice(NAMES)
            with use_backend(name):
                right &= now() == name
                with use_backend(inner):
                    right &= now() == inner
                right &= now() == name
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
    assert now() == before
    assert not selection._scopes["cpu"].blocks


def test_a_backward_is_pinned_for_its_own_device_type_only() -> None:
    with use_backend("a"):
        active = selection.current("cpu")
    with selection.pinned("cuda", active):
        assert now("cuda") == "a"
        assert now("cpu") != "a"


def test_the_environment_governs_one_device_type(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = replace(python_backend("asleep", device_type="cuda"), probe=lambda: "no card is plugged in")
    hal.register_backend(asleep)
    try:
        monkeypatch.setenv("SBHAL_BACKEND", "asleep")
        assert now("cpu") == "cpu"
        assert ops.spike_quantize(torch.ones(2, 3)).shape == (2, 3)
        with pytest.raises(hal.BackendUnavailable, match="'asleep' is not available: no card is plugged in"):
            now("cuda")
    finally:
        hal.unregister_backend("asleep")
    monkeypatch.setenv("SBHAL_BACKEND", "asleeep")
    for device_type in ("cuda", "xpu"):
        with pytest.raises(hal.BackendUnavailable, match="no backend 'asleeep'"):
            now(device_type)


def test_no_fallback_is_lost_and_each_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", set())
    soft = selection.Active(selection.current("cpu").backend, {}, {}, strict=False, reason="test")
    monkeypatch.setitem(selection.ACTIVE, "cpu", soft)
    before, go = hal.stats()["fallbacks"], Event()

    def run(_: int) -> None:
        go.wait()
        for _ in range(50):
            ops.spike_quantize(torch.ones(1, 1))

    def run_all() -> None:
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(run, i) for i in range(4)]
            go.set()
        assert [f.result() for f in found] == [None] * 4

    with pytest.warns(UserWarning, match="spike_quantize runs as its PyTorch reference") as warned:
        run_all()
    assert hal.stats()["fallbacks"] == before + 200
    assert len(warned) == 1


def test_a_warning_that_is_an_error_is_one_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", set())
    soft = selection.Active(selection.current("cpu").backend, {}, {}, strict=False, reason="test")
    monkeypatch.setitem(selection.ACTIVE, "cpu", soft)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="runs as its PyTorch reference"):
                ops.spike_quantize(torch.ones(1, 1))


def test_a_fork_while_another_thread_selects_leaves_no_lock_behind() -> None:
    script = """
        import os, threading
        from spikingbrain_hal.calls import selection

        held, done = threading.Event(), threading.Event()

        def hold():
            with selection._lock:
                held.set()
                done.wait()

        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if not child:
            os._exit(len(selection.installed_backends()) == 0)
        done.set()
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
