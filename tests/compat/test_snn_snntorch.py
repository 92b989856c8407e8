"""Whole sequences of snnTorch's Leaky on lif_scan against its own steps."""

from __future__ import annotations

import copy
import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

snntorch = pytest.importorskip("snntorch")
surrogate = pytest.importorskip("snntorch.surrogate")

from spikingbrain_hal import use_backend  # noqa: E402
from spikingbrain_hal.compat import snntorch as compat  # noqa: E402

SURROGATES: dict[str, Any] = {
    "default": lambda: None,
    "atan": lambda: surrogate.atan(alpha=1.3),
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(slope=7),
    "sigmoid": lambda: surrogate.sigmoid(slope=5.0),
    "straight through": lambda: surrogate.straight_through_estimator(),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def loop(leaky: nn.Module, x: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a user of snnTorch writes."""
    spikes, membrane = [], []
    for x_t in x:
        if leaky.init_hidden:
            out = leaky(x_t)
            spikes.append(out[0] if leaky.output else out)
            membrane.append(leaky.mem)
        else:
            spike, mem = leaky(x_t, mem)
            spikes.append(spike)
            membrane.append(mem)
    return torch.stack(spikes), torch.stack(membrane)


def uncertain(leaky: nn.Module, x: Tensor, mem: Tensor | None) -> Tensor:
    """Neurons whose potential, before a reset, comes within rounding of the threshold."""
    leaky = copy.deepcopy(leaky).double()
    near = torch.zeros(x.shape[1:], dtype=torch.bool)
    v = torch.zeros_like(x[0]) if mem is None else mem
    leaky.mem = v.double().detach()
    fire = leaky.fire
    seen: list[Tensor] = [leaky.mem]

    def watched(potential: Tensor) -> Tensor:
        seen.append(potential)
        return fire(potential)

    leaky.fire = watched
    margin = 1e-5 if x.dtype == torch.float32 else 1e-12
    for x_t in x.double():
        leaky(x_t)
        seen.append(leaky.mem)
    for potential in seen:
        near |= (potential - leaky.threshold).abs() < margin
    return near


def compare(leaky: nn.Module, x: Tensor, mem: Tensor | None, on_scan: bool | None = True) -> Tensor:
    """Asserts that run is the loop, gradients and states included; returns the spikes.

    on_scan says whether the scan must have run; None, that either may.
    """
    found = []
    left_out = uncertain(leaky, x, mem)
    assert left_out.sum() <= 1 + 0.05 * left_out.numel()
    sure = (~left_out).to(x.dtype)
    weights: list[Tensor] = []
    for function in (loop, compat.run):
        neurons = copy.deepcopy(leaky)
        inputs = x.clone().requires_grad_()
        first = None if mem is None else mem.clone().requires_grad_()
        # The kernels must run, not the reference, which float64 is for.
        with use_backend("cpu") if x.dtype == torch.float32 else nullcontext():
            spikes, membrane = function(neurons, inputs, first)
        if function is compat.run and on_scan is not None:
            assert ("Stack" not in type(membrane.grad_fn).__name__) is on_scan
        weights = weights or [torch.randn_like(membrane) * sure, torch.randn_like(membrane) * sure]
        leaves = [inputs, *([] if first is None else [first]), *neurons.parameters()]
        loss = (spikes * weights[0]).sum() + (membrane * weights[1]).sum() + (neurons.mem * weights[0][0]).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.append((spikes, membrane, neurons.mem, gradients))
    own, ours = found
    assert ours[0].dtype == own[0].dtype
    torch.testing.assert_close(ours[0] * sure, own[0] * sure, rtol=0, atol=0)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if x.dtype == torch.float64 else {"rtol": 3e-4, "atol": 3e-5}
    for a, b in zip(ours[1:3], own[1:3], strict=True):
        torch.testing.assert_close(a * sure, b * sure, **tolerance)
    largest = max(1.0, *(float(g.abs().max()) for g in own[3] if g is not None))
    for a, b in zip(ours[3], own[3], strict=True):
        zero = torch.zeros(())
        pair = torch.broadcast_tensors(*(zero if g is None else g for g in (a, b)))
        # Spikes, and so their gradients, are float32 in snnTorch whatever the inputs are; those of a parameter may be
        # small sums of large ones.
        torch.testing.assert_close(*pair, check_dtype=False, rtol=3e-4, atol=3e-5 * largest)
    return own[0].detach()


def make(**options: Any) -> nn.Module:
    leaky: nn.Module = snntorch.Leaky(**options)
    return leaky


@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delayed", [True, False], ids=["delayed", "undelayed"])
def test_every_combination_of_options_equals_the_loop(mechanism: str, delayed: bool) -> None:
    flags = itertools.product([False, True], repeat=4)
    fired = []
    for number, ((learn, disable, hidden, output), name, dtype) in enumerate(
        itertools.product(flags, SURROGATES, [torch.float32, torch.float64])
    ):
        leaky = make(
            beta=torch.rand(17) if number % 3 else 0.8,
            threshold=0.7,
            spike_grad=SURROGATES[name](),
            surrogate_disable=disable,
            init_hidden=hidden,
            output=output,
            learn_beta=learn,
            learn_threshold=learn,
            reset_mechanism=mechanism,
            graded_spikes_factor=1.7,
            learn_graded_spikes_factor=learn,
            reset_delay=delayed,
        )
        assert compat.explain(leaky, dtype) == "lif_scan"
        mem = None if hidden else 0.3 * torch.randn(3, 17, dtype=dtype)
        # Currents that stay below the threshold after a reset by subtraction, so that the undelayed one has one path.
        x = 0.9 * torch.rand(8, 3, 17, dtype=dtype) - 0.1
        fired.append((compare(leaky, x, mem, on_scan=delayed or mechanism == "none" or None) > 0).double().mean())
    assert 0.02 < torch.stack(fired).mean() < 0.9


@settings(max_examples=40, deadline=None)
@given(
    beta=st.floats(-0.2, 1.2),
    threshold=st.floats(0.1, 2.0),
    mechanism=st.sampled_from(["subtract", "zero", "none"]),
    delayed=st.booleans(),
    learn=st.booleans(),
    factor=st.sampled_from([1.0, 0.5, -2.0, torch.linspace(0.5, 2, 5)]),
    name=st.sampled_from(sorted(SURROGATES)),
    shape=st.sampled_from([(5,), (1, 5), (2, 3, 5)]),
    per_neuron=st.booleans(),
    steps=st.integers(1, 20),
    seed=st.integers(0, 1 << 30),
)
def test_any_numbers_equal_the_loop(
    beta: float, threshold: float, mechanism: str, delayed: bool, learn: bool, factor: Any, name: str,
    shape: tuple[int, ...], per_neuron: bool, steps: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    leaky = make(
        beta=torch.full((5,), beta) if per_neuron else beta,
        threshold=threshold,
        spike_grad=SURROGATES[name](),
        learn_beta=learn,
        learn_threshold=learn,
        reset_mechanism=mechanism,
        graded_spikes_factor=factor,
        learn_graded_spikes_factor=learn,
        reset_delay=delayed,
    )
    x = 2 * torch.randn(steps, *shape, dtype=torch.float64)
    compare(leaky, x, torch.randn(shape, dtype=torch.float64), on_scan=None)


def test_an_undelayed_reset_runs_on_the_scan_where_it_has_one_path_and_steps_where_not() -> None:
    leaky = make(beta=0.9, threshold=1.0, reset_delay=False)
    compare(leaky, 0.8 * torch.rand(10, 40), None, on_scan=True)
    x = torch.rand(10, 40)
    x[3] = 5.0
    compare(leaky, x, None, on_scan=False)


def test_state_carries_between_runs_and_steps() -> None:
    x = torch.randn(9, 4, 6)
    own, ours = make(beta=0.9), make(beta=0.9)
    expected, membrane = loop(own, x, None)
    first, _ = compat.run(ours, x[:4])
    step, _ = ours(x[4])
    rest, last = compat.run(ours, x[5:])
    assert torch.equal(torch.cat((first, step[None], rest)), expected)
    torch.testing.assert_close(last, membrane[5:])
    torch.testing.assert_close(ours.mem, own.mem)
    ours.reset_mem()
    assert torch.equal(compat.run(ours, x)[0], expected)


def test_a_state_of_another_shape_begins_at_zero_as_in_a_step() -> None:
    leaky = make(beta=0.9)
    compat.run(leaky, torch.randn(3, 7))
    compare(leaky, torch.randn(4, 2, 5), None)


def test_the_far_tail_of_the_sigmoid_is_zero_where_the_steps_give_nan() -> None:
    x = torch.full((1, 3), -9.0, requires_grad=True)
    spikes, _ = compat.run(make(beta=0.9, spike_grad=surrogate.sigmoid()), x)
    assert torch.equal(torch.autograd.grad(spikes.sum(), x)[0], torch.zeros(1, 3))


class Derived(snntorch.Leaky):
    """A user's class of its own."""


def quantized(v: Tensor) -> Tensor:
    return (v * 8).round() / 8


def hooked() -> nn.Module:
    leaky = make(beta=0.5)
    leaky.register_forward_hook(lambda *_: None)
    return leaky


def remade() -> nn.Module:
    leaky = make(beta=0.5, reset_delay=False)
    leaky.reset_mechanism = "zero"
    return leaky


LEFT: dict[str, tuple[Any, str]] = {
    "derived": (lambda: Derived(beta=0.5), "Derived is derived from Leaky"),
    "inhibition": (lambda: make(beta=0.5, inhibition=True), "inhibition"),
    "state_quant": (lambda: make(beta=0.5, state_quant=quantized), "state_quant"),
    "hooks": (hooked, "hooks"),
    "changed": (remade, "reset_mechanism was changed"),
    "triangular": (lambda: make(beta=0.5, spike_grad=surrogate.triangular()), "snntorch.surrogate.triangular"),
    "heaviside": (lambda: make(beta=0.5, spike_grad=surrogate.heaviside()), "snntorch.surrogate.heaviside"),
    "custom": (lambda: make(beta=0.5, spike_grad=lambda u: (u > 0).float()), "no surrogate derivative"),
    "negative slope": (lambda: make(beta=0.5, spike_grad=surrogate.fast_sigmoid(slope=-1)), "slope=-1"),
    "wide beta": (lambda: make(beta=torch.full((7,), 0.5).double()), "beta is torch.float64"),
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("name", LEFT)
def test_what_does_not_map_runs_step_by_step_and_is_explained(name: str) -> None:
    build, reason = LEFT[name]
    leaky = build()
    assert compat.explain(leaky).startswith("snntorch: ")
    assert reason in compat.explain(leaky)
    x = torch.randn(5, 6, 7)
    own = copy.deepcopy(leaky)
    expected = loop(own, x, None)
    found = compat.run(leaky, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(leaky.mem, own.mem)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_inputs_run_step_by_step(dtype: torch.dtype) -> None:
    leaky, x = make(beta=0.5), torch.randn(5, 6).to(dtype)
    assert str(dtype) in compat.explain(leaky, dtype)
    found, expected = compat.run(copy.deepcopy(leaky), x), loop(leaky, x, None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bad_calls_are_refused() -> None:
    with pytest.raises(TypeError, match=r"leaky is a Linear, expected a snntorch\.Leaky"):
        compat.run(nn.Linear(2, 2), torch.ones(3, 2))
    with pytest.raises(TypeError, match="mem is given"):
        compat.run(make(beta=0.5, init_hidden=True), torch.ones(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"x has shape \[0, 2\], expected at least one time step"):
        compat.run(make(beta=0.5), torch.ones(0, 2))


def test_a_potential_at_the_threshold_does_not_fire() -> None:
    spikes, membrane = compat.run(make(beta=0.5), torch.tensor([[1.0], [0.5], [1.0]]))
    assert spikes.flatten().tolist() == [0, 0, 1]
    assert membrane.flatten().tolist() == [1.0, 1.0, 1.5]
