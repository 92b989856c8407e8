"""From a torch call to a kernel: selection, fallback, strictness, autograd, refused transforms, compile."""

import subprocess
import sys
import warnings

import pytest
import torch

import spikingbrain_hal as hal
from spikingbrain_hal import ops
from spikingbrain_hal.calls.selection import current
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.errors import StrideError


def toy_backend(name, kernels, **more):
    return hal.Backend(
        name=name,
        vendor="nobody",
        device_type="cpu",
        probe=lambda: more.pop("problem", None),
        load=lambda: kernels,
        properties=lambda: hal.DeviceProperties("toy"),
        simulated=True,
    )


@pytest.fixture
def install():
    names = []

    def add(name, kernels, **more):
        hal.register_backend(toy_backend(name, kernels, **more))
        names.append(name)

    yield add
    for name in names:
        hal.unregister_backend(name)


def kernel_of(name, run, version=None, plan=lambda *a: 0):
    return hal.Kernel(plan, run, OPERATORS[name].version if version is None else version)


def test_a_python_kernel_serves_calls(install):
    seen = []

    def encode(x, k, low, high, mean_dtype, counts, v_threshold, workspace, stream, threads):
        seen.append((workspace.numel(), stream, threads))
        counts.fill_(7)
        v_threshold.fill_(0.5)

    install("toy", {"spike_encode": kernel_of("spike_encode", encode, plan=lambda *a: 96)})
    with hal.use_backend("toy"):
        counts, v_threshold = ops.spike_encode(torch.randn(3, 5))
    assert (counts == 7).all()
    assert (v_threshold == 0.5).all()
    assert seen == [(96, 0, torch.get_num_threads())]


def test_the_caller_s_autocast_and_grad_mode_end_above_a_python_kernel(install):
    factor = torch.eye(5).requires_grad_()

    def quantize(x, k, y, workspace, stream, threads):
        y.copy_(x @ factor)

    install("toy", {"spike_quantize": kernel_of("spike_quantize", quantize)})
    x = 1 + 2.0**-20 * torch.arange(5.0)[None]
    with hal.use_backend("toy"), torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.spike_quantize(x)
    assert torch.equal(y, x)
    assert not y.requires_grad


def test_explicit_selection_never_falls_back(install):
    install("hollow", {})
    with (
        hal.use_backend("hollow"),
        pytest.raises(hal.UnsupportedOp, match="spike_encode on backend hollow: the backend has no kernel"),
    ):
        ops.spike_encode(torch.randn(3, 5))


def test_stale_kernels_are_refused(install):
    stale = kernel_of("spike_encode", lambda *a: pytest.fail("ran"), version=999)
    install("stale", {"spike_encode": stale})
    with (
        hal.use_backend("stale"),
        pytest.raises(hal.UnsupportedOp, match=r"version 999 .* this is version 1"),
    ):
        ops.spike_encode(torch.randn(3, 5))


def test_fallback_warns_once_with_the_reason(monkeypatch):
    from spikingbrain_hal.calls import dispatch, selection

    def refuse(*_):
        raise hal.UnsupportedOp("not on Sundays")

    active = current("cpu")
    kernels = {**active.kernels, "spike_encode": hal.Kernel(refuse, refuse, 1)}
    soft = selection.Active(active.backend, kernels, {}, strict=False, reason="test")
    monkeypatch.setitem(selection.ACTIVE, "cpu", soft)
    monkeypatch.setattr(dispatch, "_warned", set())
    before = hal.stats()["fallbacks"]
    x = torch.randn(3, 5)
    with pytest.warns(UserWarning, match=f"spike_encode .* backend {active.name} says: not on Sundays"):
        ops.spike_encode(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.spike_encode(x)
    assert hal.stats()["fallbacks"] == before + 2


def test_float64_is_served_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, v_threshold = ops.spike_encode(torch.randn(3, 5).double())
    assert v_threshold.dtype == torch.float64


def test_a_float64_state_beside_float32_is_converted_not_served_by_the_reference():
    q, g, state = torch.randn(1, 40, 2, 8), -torch.rand(1, 40, 2, 8), torch.randn(1, 2, 8, 8)

    def run(state):
        leaf = state.clone().requires_grad_()
        o, final = ops.gated_linear_attention(q, q, q, g, initial_state=leaf, output_final_state=True)
        (o.sum() + final.square().sum()).backward()
        return o.detach(), final.detach(), leaf.grad

    before = hal.stats()["fallbacks"]
    with hal.use_backend("cpu"):  # strict: the reference would be an error
        expected, found = run(state), run(state.double())
    assert [t.dtype for t in found] == [torch.float32, torch.float32, torch.float64]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.float(), b)
    assert hal.stats()["fallbacks"] == before


def test_a_float64_state_does_not_hide_a_fallback(monkeypatch):
    from spikingbrain_hal.calls import dispatch, selection

    soft = selection.Active(current("cpu").backend, {}, {"lif_scan": "not on Sundays"}, strict=False, reason="test")
    monkeypatch.setitem(selection.ACTIVE, "cpu", soft)
    monkeypatch.setattr(dispatch, "_warned", set())
    before = hal.stats()["fallbacks"]
    with pytest.warns(UserWarning, match="lif_scan .* says: not on Sundays"):
        ops.lif_scan(torch.randn(3, 5), torch.zeros(5).double())
    assert hal.stats()["fallbacks"] == before + 1


def test_a_kernel_that_fails_is_not_hidden(install):
    def broken(*_):
        raise hal.DeviceError("the device fell off")

    install("broken", {"spike_encode": kernel_of("spike_encode", broken)})
    with hal.use_backend("broken"), pytest.raises(hal.DeviceError, match="fell off"):
        ops.spike_encode(torch.randn(3, 5))


def test_strided_inputs_are_copied_and_counted(install):
    def plan(x, *_):
        if not x.is_contiguous():
            raise StrideError("x is not contiguous")
        return 0

    def encode(x, *rest):
        plan(x)
        rest[4].fill_(1)
        rest[5].fill_(1)

    install("picky", {"spike_encode": kernel_of("spike_encode", encode, plan=plan)})
    before = hal.stats()["copies"]
    with hal.use_backend("picky"):
        counts, _ = ops.spike_encode(torch.randn(5, 3).t())
    assert counts.shape == (3, 5)
    assert hal.stats()["copies"] == before + 1


def test_unknown_and_unavailable_backends_say_why(install):
    with pytest.raises(hal.BackendUnavailable, match="no backend 'cpuu'"):
        hal.use_backend("cpuu")
    install("asleep", {}, problem="it is asleep")
    with pytest.raises(hal.BackendUnavailable, match="'asleep' is not available: it is asleep"):
        hal.use_backend("asleep")
    with pytest.raises(ValueError, match="already a backend named 'asleep'"):
        hal.register_backend(toy_backend("asleep", {}))


def test_use_backend_is_undone_and_refused_in_compiled_code():
    before = current("cpu").name
    with hal.use_backend("reference"):
        assert current("cpu").name == "reference"
    assert current("cpu").name == before

    @torch.compile(backend="eager", fullgraph=True)
    def switch(x):
        hal.use_backend("reference")
        return x

    # torch below 2.8 reports only where the error was raised, not its text
    with pytest.raises(Exception, match=r"compiled region|in switch\n *hal.use_backend"):
        switch(torch.zeros(1))


def test_backward_runs_where_its_forward_ran(install):
    ran = []

    def spy(name):
        spec = OPERATORS[name]

        def run(*args):
            ran.append(name)
            count = len(spec.arguments)
            results = spec.reference(*args[:count])
            for out, result in zip(args[count:-3], results, strict=True):
                out.copy_(result)

        return kernel_of(name, run)

    install("spy", {n: spy(n) for n in ("attention", "attention_backward")})
    q = torch.randn(1, 4, 2, 8, requires_grad=True)
    with hal.use_backend("spy"):
        o = ops.attention(q, q, q)
    o.sum().backward()
    assert ran == ["attention", "attention_backward"]


def test_transforms_that_would_be_wrong_are_refused():
    q = torch.randn(1, 4, 2, 8)
    with pytest.raises(NotImplementedError, match="attention: vmap"):
        torch.vmap(lambda t: ops.attention(t[None], q, q))(torch.randn(3, 4, 2, 8))
    with pytest.raises(NotImplementedError, match="attention: forward-mode AD"):
        torch.func.jvp(lambda t: ops.attention(t, q, q), (q,), (q,))
    leaf = q.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ops.attention(leaf, leaf, leaf).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention: double backward"):
        torch.autograd.grad(grad.sum(), leaf)


def test_functional_grad_works():
    q = torch.randn(1, 4, 2, 8)
    expected = q.clone().requires_grad_()
    ops.attention(expected, q, q).square().sum().backward()
    got = torch.func.grad(lambda t: ops.attention(t, q, q).square().sum())(q)
    torch.testing.assert_close(got, expected.grad)


def test_straight_through_gradient():
    x = torch.randn(3, 40, requires_grad=True)
    weight = torch.randn(3, 40)
    (ops.spike_quantize(x) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_step_matches_eager(backend):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 20, h, 16) for h in (4, 2, 2))
    g = torch.nn.functional.logsigmoid(torch.randn(2, 20, 2, 16))

    def step(q, k, v, g):
        o, state = ops.gated_linear_attention(q, k, v, g, output_final_state=True)
        o = o + ops.attention(q, k, v, window=5)
        spikes, _ = ops.lif_scan(o.transpose(0, 1), reset="soft")
        return (spikes * ops.spike_quantize(o).transpose(0, 1)).sum() + state.square().sum()

    grads = []
    for run in (step, torch.compile(step, backend=backend, fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (q, k, v, g)]
        grads.append(torch.autograd.grad(run(*leaves), leaves))
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_the_first_call_of_a_process_may_be_a_compiled_one():
    code = """
import torch
from spikingbrain_hal import ops
x = torch.randn(4, 3, requires_grad=True)
step = torch.compile(lambda x: ops.lif_scan(ops.spike_quantize(x))[0].sum(), backend="aot_eager", fullgraph=True)
step(x).backward()
assert x.grad.any()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_autocast_casts_only_what_is_declared():
    q, g, state = torch.randn(1, 4, 2, 8), -torch.rand(1, 4, 2, 8), torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, final = ops.gated_linear_attention(q, q, q, g, initial_state=state, output_final_state=True)
        spikes, _ = ops.lif_scan(q)
    assert (o.dtype, final.dtype, spikes.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_gradients_flow_through_autocast():
    q = torch.randn(1, 4, 2, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = ops.attention(q, q, q)
    o.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_raw_operators_refuse_to_lose_a_gradient():
    q = torch.randn(1, 4, 2, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"spikingbrain_hal\.ops\.attention"):
        torch.ops.sbhal.attention(q, q, q, None, None, None, True, 0, 1.0, 0)
    state = torch.zeros(1, 2, 8, 8)
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.gated_linear_attention_step_(q[:, 0], q[:, 0], q[:, 0], q[:, 0], state)


def test_in_place_state_bumps_its_version():
    state = torch.zeros(1, 2, 8, 8)
    before = state._version
    q = torch.randn(1, 2, 8)
    ops.gated_linear_attention_step_(q, q, q, -q.abs(), state)
    assert state._version > before
    assert state.any()
