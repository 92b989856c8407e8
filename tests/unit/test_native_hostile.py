"""What must not break the CPU module or the simulated device: threads, forks, text and tensors that are no good."""

import subprocess
import sys
import textwrap

import pytest

native = pytest.importorskip("spikingbrain_hal.backends.cpu._native")


def run_script(code: str, timeout: float = 60) -> str:
    """What a script prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


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
        print(torch.equal(found[0], expected[0]), torch.allclose(found[1], expected[1]))
    """)
    assert text == "spike_encode: no host memory is left\nTrue True"
