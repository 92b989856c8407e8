"""GPU backends on a machine that has none: why each cannot run, simulated devices, what is checked before a launch."""

import sys
from types import SimpleNamespace

import pytest
import torch

import spikingbrain_hal as hal
from spikingbrain_hal import ops
from spikingbrain_hal.backend import device_backend, torch_vendor
from spikingbrain_hal.backend.gpu import X86_64_V3, _without_code
from spikingbrain_hal.calls import dispatch
from spikingbrain_hal.calls.selection import installed_backends, register_backend, unregister_backend
from spikingbrain_hal.errors import BackendUnavailable
from spikingbrain_hal.testing import python_backend

SIMULATED = [name for name in ("sim", "maca") if not installed_backends()[name].backend.probe()]


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_a_backend_that_was_not_built_says_how_to_build_it(name):
    with pytest.raises(BackendUnavailable, match=f'not built; reinstall with -C sbhal.backends="{name}"'):
        hal.use_backend(name)


def test_devices_of_another_vendor_are_not_taken(monkeypatch):
    monkeypatch.setattr("spikingbrain_hal.backend.gpu.find_spec", lambda module: module)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert device_backend("nowhere", "cuda", "NVIDIA").probe() == "this torch serves AMD devices, not NVIDIA's"


@pytest.mark.parametrize(
    ("attributes", "version", "vendor"),
    [
        ({"hip": None, "cuda": None}, "2.13.0+cpu", ""),
        ({"hip": None, "cuda": "13.0"}, "2.13.0+cu130", "NVIDIA"),
        ({"hip": "6.4", "cuda": None}, "2.13.0+rocm6.4", "AMD"),
        ({"hip": None, "cuda": "11.6"}, "2.4.0+metax3.0.0.3", "MetaX"),
        ({"hip": None, "cuda": "11.6", "maca": "3.8.1.0"}, "2.8.0", "MetaX"),
    ],
)
def test_the_vendor_of_cuda_devices_is_told_from_torch(monkeypatch, attributes, version, vendor):
    for name, value in attributes.items():
        monkeypatch.setattr(torch.version, name, value, raising=False)
    monkeypatch.setattr(torch, "__version__", version)
    assert torch_vendor() == vendor


def test_a_device_that_the_build_has_no_code_for_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "acme._built", SimpleNamespace(targets=["gfx90a:xnack-", "gfx942"]))
    devices = [SimpleNamespace(gcnArchName="gfx90a:sramecc+:xnack-"), SimpleNamespace(gcnArchName="gfx1100")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    assert _without_code("acme") == (
        "device 1 is gfx1100, this build has code for gfx90a:xnack-, gfx942; "
        'reinstall with -C cmake.define.SBHAL_ROCM_ARCHS="gfx1100"'
    )
    devices.pop()
    assert _without_code("acme") is None


def test_a_processor_without_the_instructions_is_a_reason(monkeypatch):
    monkeypatch.setattr("spikingbrain_hal.backend.gpu.machine", lambda: "x86_64")
    monkeypatch.setattr(
        "spikingbrain_hal.backend.gpu.Path.read_text", lambda path: f"flags : {' '.join(X86_64_V3[:-2])} sse2"
    )
    problem = installed_backends()["sim"].backend.probe()
    assert problem == f"simulated devices need a processor with {', '.join(X86_64_V3[-2:])}"


def test_an_unknown_wavefront_is_a_reason(monkeypatch):
    monkeypatch.setenv("SBHAL_SIM_WAVE", "48")
    assert installed_backends()["sim"].backend.probe() == "SBHAL_SIM_WAVE is '48', expected one of 32, 64"


def test_tensors_on_several_devices_are_refused_before_a_launch():
    launch = dispatch._launch_on("cuda")
    with pytest.raises(ValueError, match="several devices"):
        launch(None, [torch.empty(1), torch.empty(1, device="meta")], [], 1)


@pytest.fixture
def unchecking():
    """A backend whose kernels look at no values."""
    function = {"gated_linear_attention": lambda *args: (args[2].clone(), torch.empty(0))}
    device = python_backend("unchecking", function, device_type="cuda")  # where values are not looked at
    register_backend(hal.Backend(**{**vars(device), "device_type": "cpu"}))
    yield "unchecking"
    unregister_backend("unchecking")


def packed(offsets):
    q = torch.randn(1, 4, 1, 8)
    return ops.gated_linear_attention(q, q, q, -torch.rand(1, 4, 1), cu_seqlens=torch.tensor(offsets))


def test_values_are_checked_before_a_launch_when_asked_for(unchecking, monkeypatch):
    monkeypatch.delenv("SBHAL_CHECK", raising=False)
    with hal.use_backend(unchecking):
        packed([0, 3, 2])
    monkeypatch.setenv("SBHAL_CHECK", "1")
    with hal.use_backend(unchecking):
        packed([0, 2, 4])
        with pytest.raises(ValueError, match=r"gated_linear_attention: cu_seqlens\[2\] is 2, expected no less than"):
            packed([0, 3, 2])


@pytest.mark.skipif(not SIMULATED, reason="no simulated GPU was built")
@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulated_gpu_runs_models_forward_and_backward(name):
    torch.manual_seed(0)
    q, kv = torch.randn(1, 40, 4, 16, requires_grad=True), torch.randn(1, 40, 2, 16, requires_grad=True)
    g = -torch.rand(1, 40, 2, 16)

    def run():
        o, _ = ops.gated_linear_attention(q, kv, kv, g)
        spikes, _ = ops.lif_scan(ops.attention(o, kv, kv, window=8).transpose(0, 1))
        return torch.autograd.grad((spikes * spikes.detach().cos()).sum() + o.sum(), (q, kv))

    with hal.use_backend("reference"):
        expected = run()
    with hal.use_backend(name):
        found = run()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not SIMULATED, reason="no simulated GPU was built")
@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulated_gpu_says_so(name):
    backend = installed_backends()[name].backend
    assert backend.simulated
    assert "simulated" in backend.properties().name
    assert hal.ops.spike_encode(torch.ones(2, 8))[0].shape == (2, 8)  # and is not chosen by itself
