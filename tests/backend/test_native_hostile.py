"""What must not break the CPU module or the simulated device: threads, forks, text and tensors that are no good."""

import math
import subprocess
import sys
import textwrap

import pytest
import torch

from spikingbrain_hal import ops, use_backend
from spikingbrain_hal.calls.selection import installed_backends, load
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.rules import offsets

native = pytest.importorskip("spikingbrain_hal.backends.cpu._native")


def run_script(code: str, timeout: float = 60) -> str:
    """What a script prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def cpu_kernel(name):
    return load(installed_backends()["cpu"].backend)[0][name]


def test_first_calls_on_two_threads_have_workspaces_of_their_own():
    """The allocator is Python code: while it runs, the other thread's call begins."""
    text = run_script("""
        import threading, time
        import torch
        from spikingbrain_hal.backends.cpu import _native
        from spikingbrain_hal.backend.native import load_kernels

        torch.manual_seed(0)
        empty, asked = torch.empty, []

        def slowly(size, **options):
            asked.append(size)
            time.sleep(0.05)
            return empty(size, **options)

        torch.empty = slowly
        run = load_kernels(_native, "cpu")["gated_linear_attention"].run
        torch.empty = empty
        q = torch.randn(1, 8000, 2, 64)
        args = (q, q, q, -torch.rand(q.shape), None, None, 1.0, True)
        together, outputs = threading.Barrier(2), [(torch.empty_like(q), torch.empty(1, 2, 64, 64)) for _ in range(3)]

        def call(index):
            together.wait()
            run(*args, *outputs[index], 0, 1)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
        for t in threads: t.start()
        for t in threads: t.join()
        run(*args, *outputs[2], 0, 1)
        for found in outputs[:2]:
            assert all(map(torch.equal, found, outputs[2]))
        print(len(asked), max(asked) > min(asked))
    """)
    assert text == "2 True"


FORKED = """
    import os, signal, sys
    import torch
    torch.set_num_threads(2)
    import spikingbrain_hal as hal
    from spikingbrain_hal import ops

    x = torch.randn(16, 300_000)
    if {loaded}:
        hal.use_backend({backend!r})
        expected = ops.lif_scan(x[:, :8])[0]
    torch.exp(x)  # the parent has workers from here on

    def in_a_child(generations):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signal.alarm(15)
        if generations > 1:
            os._exit(in_a_child(generations - 1))
        hal.use_backend({backend!r})
        spikes = ops.lif_scan({taken})[0]
        hal.use_backend("reference")
        torch.set_num_threads(1)  # for torch itself
        os._exit(0 if torch.equal(spikes, ops.lif_scan({taken})[0]) else 1)

    print([in_a_child(1), in_a_child(2), in_a_child(1)])
"""


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded before", "loaded after"])
@pytest.mark.parametrize(("backend", "taken"), [("cpu", "x"), ("sim", "x[:, :2000].contiguous()")], ids=["cpu", "sim"])
def test_calls_in_a_fork_end(loaded, backend, taken):
    """A fork leaves the workers of OpenMP behind; who waits for them waits for ever."""
    if backend == "sim":
        pytest.importorskip("spikingbrain_hal.backends.sim._native32")
    assert run_script(FORKED.format(loaded=loaded, backend=backend, taken=taken), 120) == "[0, 0, 0]"


@pytest.mark.slow
def test_forks_while_other_threads_launch_leave_no_lock_behind():
    """Without care one child in fifty finds the simulated device's pools locked by a thread that it does not have."""
    pytest.importorskip("spikingbrain_hal.backends.sim._native32")
    text = run_script(
        """
        import os, signal, threading
        import torch
        from spikingbrain_hal import ops, use_backend

        use_backend("sim")
        x, done = torch.randn(1, 64), threading.Event()

        def launch():
            while not done.is_set():
                ops.spike_quantize(x)

        ops.spike_quantize(x)
        threads = [threading.Thread(target=launch) for _ in range(3)]
        for t in threads: t.start()
        statuses = set()
        for _ in range(40):
            if child := os.fork():
                statuses.add(os.waitpid(child, 0)[1])
            else:
                signal.alarm(10)
                ops.spike_quantize(x)
                os._exit(0)
        done.set()
        for t in threads: t.join()
        print(statuses)
        """,
        timeout=300,
    )
    assert text == "{0}"


@pytest.mark.parametrize(
    ("limit", "spare", "rows", "first"),
    [
        pytest.param("RLIMIT_AS", 30 << 20, 2000, "spike_encode(x[:1])", id="no stacks for a second worker"),
        pytest.param("RLIMIT_DATA", 2 << 20, 64, "lif_scan(x)", id="no stack for one more thread"),
    ],
)
def test_a_simulated_device_without_memory_is_an_error(limit, spare, rows, first):
    """Its blocks run in a parallel region, on stacks of their own: no exception may leave either."""
    pytest.importorskip("spikingbrain_hal.backends.sim._native32")
    text = run_script(f"""
        import resource
        import torch
        torch.set_num_threads(2)
        import spikingbrain_hal as hal

        torch.exp(torch.randn(1 << 20))  # OpenMP's threads are there
        x = torch.randn({rows}, 600)
        with hal.use_backend("reference"):
            expected = hal.ops.spike_encode(x)
        hal.use_backend("sim")
        hal.ops.{first}  # one worker is there; lif_scan needs a single stack of it
        name = {"VmSize" if limit == "RLIMIT_AS" else "VmData"!r}
        held = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
        before = resource.getrlimit(resource.{limit})
        resource.setrlimit(resource.{limit}, (held + {spare}, before[1]))
        try:
            hal.ops.spike_encode(x)
        except MemoryError as error:
            print(error)
        resource.setrlimit(resource.{limit}, before)
        found = hal.ops.spike_encode(x)
        differing = (found[0] != expected[0]).float().mean()  # a count next to a half may round either way
        print(bool(differing < 1e-3), torch.allclose(found[1], expected[1]))
    """)
    assert text == "spike_encode: no host memory is left\nTrue True"


SCALARS = (0.5, 0.5, 0.0, 1.0, "hard", 0.0, False, False, False, 1, "floor", -math.inf, "sigmoid", 4.0, 0.0, False)


def lif_plan(**changed):
    """Plans a call of the kernel itself with one attribute changed."""
    names = [*OPERATORS["lif_scan"].attributes]
    attributes = [changed.get(n, v) for n, v in zip(names, SCALARS, strict=True)]
    return cpu_kernel("lif_scan").plan(torch.zeros(2, 3), None, None, None, *attributes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 100_000, "lif_scan: surrogate is 'x{64}', expected one of 'sigmoid', 'atan', .*'periodic_exponential'"),
        ("é" * 100_000, "lif_scan: surrogate is 'é+', expected one of 'sigmoid'"),
        ("sigmoid\0s", "lif_scan: .* holds a null character"),
        ("\ud800", "lif_scan: .*surrogates not allowed"),
    ],
    ids=["long", "cut within a character", "null", "not unicode"],
)
def test_any_text_is_refused_in_few_words(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        lif_plan(surrogate=text)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("threads", [0, -1, 1 << 31, (1 << 32) + 1])
def test_a_number_of_threads_is_checked_before_it_is_narrowed(threads):
    kernel, x = cpu_kernel("spike_quantize"), torch.ones(2, 3)
    y = torch.full((2, 3), 7.0)
    with pytest.raises(ValueError, match=f"spike_quantize: num_threads is {threads}, expected 1 to 2147483647"):
        kernel.run(x, 3.0, y, 0, threads)
    assert (y == 7).all()


def overlapping():
    base = torch.zeros(2, 2, 3, 4)
    return {
        "one state for all rows": base[:1].expand(2, -1, -1, -1),
        "slots half over each other": torch.zeros(100).as_strided((2, 2, 3, 4), (12, 12, 4, 1)),
        "one row short": torch.zeros(100).as_strided((2, 2, 3, 4), (23, 12, 4, 1)),
        "channels over each other": torch.zeros(100).as_strided((2, 2, 3, 4), (24, 12, 2, 1)),
    }


@pytest.mark.parametrize("way", [*overlapping()])
@pytest.mark.parametrize("backend", ["cpu", "sim", "reference"])
def test_memory_that_two_rows_would_write_is_refused(way, backend):
    if backend == "sim":
        pytest.importorskip("spikingbrain_hal.backends.sim._native32")
    state, q = overlapping()[way], torch.randn(2, 2, 3)
    args = (q, q, torch.randn(2, 2, 4), -torch.rand(2, 2, 3), state)
    words = r"gated_linear_attention_step_: state is written in place and has strides \[.*memory of its own"
    with use_backend(backend), pytest.raises(ValueError, match=words):
        ops.gated_linear_attention_step_(*args)
    if backend != "reference":
        kernels, _ = load(installed_backends()[backend].backend)
        with pytest.raises(ValueError, match=words):
            kernels["gated_linear_attention_step_"].plan(*args, None, 1.0)
    assert not state.any()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3)])
def test_memory_of_ones_own_may_have_gaps_and_any_order(order):
    state = torch.zeros(5, 5, 5, 5)[1:3, 1:3, 1:3, :4].permute(order)
    q = torch.randn(2, 2, 2)
    ops.gated_linear_attention_step_(q, q, torch.randn(2, 2, 4), -torch.rand(2, 2, 2), state)
    assert state.all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_error_about_many_numbers_names_one(backend):
    many = 200_000
    q, offsets = torch.randn(1, many, 1, 4), torch.arange(many + 1)
    offsets[-2] = 7
    with use_backend(backend), pytest.raises(ValueError, match=rf"cu_seqlens\[{many - 1}\] is 7") as caught:
        ops.gated_linear_attention(q, q, q, -torch.rand(1, many, 1), cu_seqlens=offsets)
    assert len(str(caught.value)) < 300
    q, state = torch.randn(many, 1, 1), torch.zeros(many, 1, 1, 1)
    slots = torch.arange(many)
    slots[-1] = 5
    with use_backend(backend), pytest.raises(ValueError, match=rf"slots\[{many - 1}\] is 5") as caught:
        ops.gated_linear_attention_step_(q, q, q, -torch.rand(many, 1), state, slots)
    assert len(str(caught.value)) < 300
    assert not state.any()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([0, 3, 3, 8], None),
        ([1, 2], "cu_seqlens[0] is 1, expected 0"),
        ([0, 3, 2], "cu_seqlens[2] is 2, expected no less than the offset before it, 3"),
        ([0, -1], "cu_seqlens[1] is -1, expected no less than the offset before it, 0"),
        ([0, 9], "cu_seqlens ends at 9, expected at most T=8"),
    ],
)
def test_offsets_name_the_entry_that_is_wrong(values, problem):
    assert offsets("cu_seqlens", "T")({"cu_seqlens": torch.tensor(values), "T": 8}) == problem
