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
from spikingbrain_hal.backend.native import _ERRORS as native_errors
from spikingbrain_hal.backend.plugin import load_kernels, signature_of
from spikingbrain_hal.calls.selection import load
from spikingbrain_hal.declare.registry import OPERATORS

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
        ((3, 3.0, 1e-5, 1e4, "float32"), TypeError, "spike_encode: x is int, expected a torch.Tensor"),
        ((torch.zeros(2, 2), "a", 1e-5, 1e4, "float32"), TypeError, "spike_encode: k: must be real number, not str"),
        ((torch.zeros(2, 2), 3.0, 1e-5, 1e4, 7), TypeError, "spike_encode: mean_dtype is int, expected a str"),
        ((torch.zeros(2, 2, device="meta"), 3.0, 1e-5, 1e4, "float32"), (ValueError, BufferError, RuntimeError), ""),
        ((torch.zeros([1] * 9), 3.0, 1e-5, 1e4, "float32"), ValueError, "spike_encode: x has 9 dimensions, at most 8"),
        ((None, 3.0, 1e-5, 1e4, "float32"), TypeError, "spike_encode: x is None, expected a tensor"),
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
    with pytest.raises(ValueError, match="num_threads is 0, expected 1 to"):
        kernel.launch(*args, o, state, torch.empty(size, dtype=torch.uint8), 0, 0)
    assert (o == 7).all()
    assert (state == 7).all()


def compile_kernel(source, folder):
    """Whether a kernel's source compiles, and what the compiler says."""
    (folder / "odd.cpp").write_text(f'#include "core/kernel.h"\nnamespace sbhal::SBHAL_ISA {{ namespace {{\n{source}\n')
    command = ["c++", "-std=c++17", "-fsyntax-only", "-DSBHAL_ISA=none", "-DSBHAL_ISA_LEVEL=0", f"-I{ROOT / 'csrc'}"]
    done = subprocess.run([*command, folder / "odd.cpp"], capture_output=True, text=True)
    return done.returncode == 0, done.stderr


MANY = ", ".join(f"x{i}" for i in range(49))


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ("Tensor x; Optional y; InPlace z; double a, b; int64_t n; bool c; Text d; Output o;", True),
        ("Tensor x;  // the first\n bool a, /* odd */ b; double c;", True),
        (f"Tensor {MANY.removesuffix(', x48')};", True),
        (f"Tensor {MANY};", False),
        ("double a; Tensor x;", False),
        ("Output o; double a;", False),
        ("float a;", False),
        ("double a[2];", False),
        ("const Tensor& x;", False),
        ("Tensor *x;", False),
    ],
)
def test_arguments_are_what_the_module_can_convert(fields, fits, tmp_path):
    compiled, words = compile_kernel(f"SBHAL_ARGUMENTS(Odd, {fields}) }} }}", tmp_path)
    assert compiled == fits, words
    assert fits or "Odd: Tensor, Optional, InPlace; then double, int64_t, bool, Text; then Output; at most 48" in words


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("struct Plan { int64_t workspace_bytes; };", ""),
        ("struct Plan { char much[1025]; int64_t workspace_bytes; };", "a plan is plain data of few bytes"),
        ("struct Plan { int64_t workspace_bytes; ~Plan() {} };", "a plan is plain data of few bytes"),
        ("struct Plan { int64_t bytes; };", "workspace_bytes"),
    ],
)
def test_a_plan_is_plain_data(plan, words, tmp_path):
    source = f"""
    SBHAL_ARGUMENTS(Odd, Tensor x; Output y;)
    {plan}
    Plan plan(const Odd&) {{ return {{}}; }}
    void launch(const Odd&, const Plan&, const Launch&) {{}}
    }} }}
    SBHAL_KERNEL(odd, 1, Odd)
    """
    compiled, found = compile_kernel(source, tmp_path)
    assert compiled == (not words), found
    assert words in found


def test_modules_name_their_arguments_as_the_declarations_do():
    named = {name: s for name, s in native.OP_SIGNATURE.items() if ":" in s}
    assert named["gated_linear_attention_step_"] == "q:T k:T v:T g:T state:W slots:O scale:d o:R"
    assert named == {name: signature_of(OPERATORS[name]) for name in named}


@pytest.mark.parametrize(
    ("op", "old", "new", "words"),
    [
        ("spike_encode", "vth_min:d vth_max:d", "vth_max:d vth_min:d", "argument 3 of spike_encode is vth_max:d"),
        ("spike_encode", " v_threshold:R", "", "argument 7 of spike_encode is nothing, where .* has v_threshold:R"),
        ("gated_linear_attention_step_", "state:W", "state:T", "argument 5 of .*_step_ is state:T, .* has state:W"),
        ("lif_scan", "O O O O d", "O O O d d", "argument 4 of lif_scan is d, where the declaration has O"),
    ],
)
def test_a_kernel_with_other_arguments_is_not_loaded(op, old, new, words):
    kernel = cpu_kernel(op)
    assert kernel.signature.count(old) == 1
    wrong = kernel._replace(signature=kernel.signature.replace(old, new))
    backend = hal.Backend("odd", "test", "cpu", lambda: None, lambda: {op: wrong}, lambda: None, simulated=True)
    with pytest.raises(hal.BackendUnavailable, match=f"backend 'odd' is not available: it does not load: .*{words}"):
        load_kernels(backend)


def test_binding_that_fails_changes_nothing():
    dtypes = {"float32": torch.float32, "float128": torch.float64}
    before = native.uses_exchange_table()
    with pytest.raises(IndexError):
        native.bind("cuda", int, dtypes, False, native_errors, torch.empty, False)
    assert native.uses_exchange_table() == before
    assert cpu_kernel("spike_encode").plan(torch.ones(2, 3), 3.0, 1e-5, 1e4, "float32") == 0
