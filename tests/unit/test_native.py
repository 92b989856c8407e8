"""The CPU module from Python: both ways to read a tensor, instruction sets, threads, forks."""

import concurrent.futures
import os
import subprocess
import sys

import pytest
import torch

import spikingbrain_hal as hal
from checkout import ROOT
from spikingbrain_hal import ops
from spikingbrain_hal.selection import load

native = pytest.importorskip("spikingbrain_hal.backends.cpu._native")


def run_python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    return result.returncode, result.stdout.strip(), result.stderr


def workload():
    torch.manual_seed(0)
    q, kv = torch.randn(2, 70, 4, 32), torch.randn(2, 70, 2, 32)
    g = -torch.rand(2, 70, 2, 32)
    o, state = ops.gated_linear_attention(q, kv, kv, g, output_final_state=True)
    spikes, v = ops.lif_scan(torch.randn(9, 1000))
    return [o, state, ops.attention(q, kv, kv, window=20), spikes, v, *ops.spike_encode(q)]


CHECK = """
import torch, spikingbrain_hal as hal
from spikingbrain_hal import ops
hal.use_backend("cpu")
from spikingbrain_hal.backends.cpu import _native
x = torch.randn(3, 5, 40)[:, ::2]
counts, v_threshold = ops.spike_encode(x)
with hal.use_backend("reference"):
    expected, _ = ops.spike_encode(x)
assert torch.equal(counts, expected)
print(_native.uses_exchange_table(), _native.isa)
"""


@pytest.mark.parametrize("exchange", ["1", "0"])
def test_tensors_are_read_both_ways(exchange):
    code, out, err = run_python(CHECK, SBHAL_DLPACK_EXCHANGE=exchange)
    assert code == 0, err
    has_table = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert out.split()[0] == str(exchange == "1" and has_table)


def test_portable_kernels_can_be_forced():
    code, out, err = run_python(CHECK, SBHAL_CPU_ISA="portable")
    assert code == 0, err
    assert out.split()[1] == "portable"


def test_an_unknown_instruction_set_is_refused():
    code, _, err = run_python(CHECK, SBHAL_CPU_ISA="avx1024")
    assert code != 0
    assert "accepted are portable, avx2, avx512 and avx512_bf16" in err


def test_calls_from_many_python_threads_agree():
    expected = workload()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: workload(), range(24)):
            # generators are shared between threads, so only deterministic inputs can be compared
            assert [r.shape for r in results] == [e.shape for e in expected]

    x, kv = torch.randn(2, 70, 4, 32), torch.randn(2, 70, 2, 32)
    same = ops.attention(x, kv, kv)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: ops.attention(x, kv, kv), range(48)):
            assert torch.equal(result, same)


class Encoded(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        x = torch.arange(4000.0).reshape(40, 100) + index
        spikes, _ = ops.lif_scan(x)
        return ops.spike_encode(x)[0].float() + spikes


def test_forked_workers_of_a_data_loader_are_right():
    ops.spike_encode(torch.randn(400, 1000))  # start the parent's threads first: their loss is what a fork brings
    data = Encoded()
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for index, item in enumerate(loader):
        assert torch.equal(item, data[index])


def cpu_kernel(name):
    found = hal.installed_backends()["cpu"].backend
    assert found is not None
    return load(found)[0][name]


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((), TypeError, "spike_encode: takes 5 arguments, got 0"),
        ((3, 3.0, 1e-5, 1e4, "float32"), TypeError, "spike_encode: expected a torch.Tensor or None, got int"),
        ((torch.zeros(2, 2), "a", 1e-5, 1e4, "float32"), TypeError, "spike_encode: .*real number"),
        ((torch.zeros(2, 2), 3.0, 1e-5, 1e4, 7), TypeError, "spike_encode: .*str"),
        ((torch.zeros(2, 2, device="meta"), 3.0, 1e-5, 1e4, "float32"), (ValueError, BufferError, RuntimeError), ""),
        ((torch.zeros([1] * 9), 3.0, 1e-5, 1e4, "float32"), ValueError, "9 dimensions, at most 8"),
    ],
)
def test_the_bridge_refuses_what_it_cannot_read(args, error, words):
    with pytest.raises(error, match=words):
        cpu_kernel("spike_encode").plan(*args)


def test_a_short_workspace_is_refused():
    kernel = cpu_kernel("gated_linear_attention")
    q = torch.randn(1, 9, 1, 16)
    args = (q, q, q, -q.abs(), None, None, 1.0, True)
    size = kernel.plan(*args)
    o, state = torch.full((1, 9, 1, 16), 7.0), torch.full((1, 1, 16, 16), 7.0)
    if size == 0:
        pytest.skip("this kernel needs no workspace")
    with pytest.raises(ValueError, match="workspace holds"):
        kernel.launch(*args, o, state, torch.empty(1, dtype=torch.uint8), 0, 1)
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        kernel.launch(*args, o, state, torch.empty(size, dtype=torch.uint8), 0, 0)
    assert (o == 7).all()
    assert (state == 7).all()


@pytest.mark.parametrize(
    ("plan", "launch", "fits"),
    [
        ("const Tensor&, const char*", "const Tensor&, const char*, const Tensor&, const Launch&", True),
        ("const Tensor&", "const Tensor&, const Launch&", True),
        ("const char*, const Tensor&", "const Tensor&, const char*, const Tensor&, const Launch&", False),
        ("const Tensor&, double", "const Tensor&, int64_t, const Tensor&, const Launch&", False),
        ("const Tensor&, const char*", "const Tensor&, const Tensor&, const Launch&", False),
        ("const Tensor&", "const Tensor&, const Tensor&", False),
    ],
)
def test_a_launch_that_does_not_follow_its_plan_does_not_compile(plan, launch, fits, tmp_path):
    """Both are given the same arguments, so another order would read one that is not there."""
    source = f"""
    #include "core/kernel.h"
    namespace sbhal::SBHAL_ISA {{ namespace {{
    int64_t plan({plan}) {{ return 0; }}
    void launch({launch}) {{}}
    }} }}
    SBHAL_KERNEL(odd, 1, plan, launch)
    """
    (tmp_path / "odd.cpp").write_text(source)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-DSBHAL_ISA=none", "-DSBHAL_ISA_LEVEL=0", f"-I{ROOT / 'csrc'}"]
    done = subprocess.run([*command, tmp_path / "odd.cpp"], capture_output=True, text=True)
    assert (done.returncode == 0) == fits, done.stderr
    if not fits:
        assert "odd: launch takes what plan takes, then the outputs, then const Launch&" in done.stderr
