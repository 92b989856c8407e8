"""The neurons' familiar faces against plain loops over time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spikingbrain_hal.nn import IF, LIF, Leaky, Neuron, ParametricLIF

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def hard_or_soft(h: Tensor, threshold: float, v_reset: float | None) -> tuple[Tensor, Tensor]:
    spikes = (h >= threshold).to(h.dtype)
    after = h - spikes * threshold if v_reset is None else torch.where(spikes > 0, v_reset, h)
    return spikes, after


def lif(tau: float, decay_input: bool, threshold: float, v_reset: float | None) -> Step:
    rest = v_reset or 0.0

    def step(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = v + (x - (v - rest)) / tau if decay_input else v - (v - rest) / tau + x
        return hard_or_soft(h, threshold, v_reset)

    return step


def leaky(beta: float, threshold: float, reset: str) -> Step:
    def step(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        fired = (v > threshold).to(v.dtype)
        if reset == "zero":
            h = beta * (1 - fired) * v + x
        else:
            h = beta * v + x - (fired * threshold if reset == "subtract" else 0)
        return (h > threshold).to(v.dtype), h

    return step


CASES = {
    "if": (IF(), lambda v, x: hard_or_soft(v + x, 1.0, 0.0), 0.0),
    "if_soft": (IF(0.7, None), lambda v, x: hard_or_soft(v + x, 0.7, None), 0.0),
    "if_reset": (IF(0.7, -0.2), lambda v, x: hard_or_soft(v + x, 0.7, -0.2), -0.2),
    "lif": (LIF(), lif(2.0, True, 1.0, 0.0), 0.0),
    "lif_reset": (LIF(1.5, True, 0.5, -0.3), lif(1.5, True, 0.5, -0.3), -0.3),
    "lif_input": (LIF(3.0, False, 1.0, None), lif(3.0, False, 1.0, None), 0.0),
    "lif_input_reset": (LIF(3.0, False, 1.0, 0.2), lif(3.0, False, 1.0, 0.2), 0.2),
    "parametric": (ParametricLIF(4.0, True, 0.5).double(), lif(4.0, True, 0.5, 0.0), 0.0),
    "parametric_input": (ParametricLIF(4.0, False, 0.5, None).double(), lif(4.0, False, 0.5, None), 0.0),
    "leaky_subtract": (Leaky(0.9), leaky(0.9, 1.0, "subtract"), 0.0),
    "leaky_zero": (Leaky(0.8, 0.6, "zero"), leaky(0.8, 0.6, "zero"), 0.0),
    "leaky_none": (Leaky(0.8, 0.6, "none"), leaky(0.8, 0.6, "none"), 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_neuron_equals_its_loop(name: str) -> None:
    neuron, step, start = CASES[name]
    x = 1.5 * torch.randn(30, 4, 5, dtype=torch.float64)
    v, rows = torch.full((4, 5), start, dtype=torch.float64), []
    for t in range(30):
        spikes, v = step(v, x[t])
        rows.append(spikes)
    with torch.no_grad():
        found, final = neuron(x)
    assert 0.02 < found.mean() < 0.9
    assert torch.equal(found, torch.stack(rows))
    torch.testing.assert_close(final, v)


@pytest.mark.parametrize("neuron", [LIF(), Leaky(0.9), Leaky(0.9, reset="zero")], ids=repr)
def test_scan_goes_on_from_the_potential_it_returned(neuron: Neuron) -> None:
    x = 2 * torch.randn(20, 6, dtype=torch.float64)
    whole, v_whole = neuron(x)
    first, v = neuron(x[:8])
    rest, v = neuron(x[8:], v)
    assert torch.equal(torch.cat((first, rest)), whole)
    torch.testing.assert_close(v, v_whole)


def test_time_constant_is_learnt() -> None:
    neuron = ParametricLIF(2.0)
    assert neuron.w.item() == pytest.approx(-math.log(1.0))
    spikes, _ = neuron(2 * torch.rand(12, 5))
    spikes.sum().backward()
    assert neuron.w.grad.abs() > 0


def test_leaky_learns_its_decay_and_threshold() -> None:
    neuron = Leaky(torch.full((5,), 0.9), 0.7, learn_beta=True, learn_threshold=True)
    x = torch.randn(12, 3, 5)
    neuron(x)[0].sum().backward()
    assert neuron.beta.grad.shape == (5,)
    assert neuron.v_threshold.grad.abs() > 0
    with torch.no_grad():
        neuron.beta.fill_(1.5)
        assert torch.equal(neuron(x)[0], Leaky(1.0, 0.7)(x)[0])


def test_leaky_takes_a_decay_for_each_neuron() -> None:
    betas, x = torch.rand(4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    neuron = Leaky(betas)
    assert [name for name, _ in neuron.named_buffers()] == ["beta"]
    assert "beta=[4]" in repr(neuron)
    each = [Leaky(beta.item())(x[:, i])[0] for i, beta in enumerate(betas)]
    assert torch.equal(neuron(x)[0], torch.stack(each, 1))


def test_surrogate_is_passed_on() -> None:
    gradients = []
    for alpha in (1.0, 4.0):
        x = torch.linspace(-1, 1, 6, requires_grad=True)
        LIF(surrogate="atan", alpha=alpha)(x[None])[0].sum().backward()
        gradients.append(x.grad)
    assert not torch.equal(*gradients)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(tau=0.5), "tau is 0.5"),
        (lambda: ParametricLIF(1.0), "init_tau is 1.0"),
        (lambda: Leaky(1.5), "beta is 1.5"),
        (lambda: Leaky(torch.tensor([0.5, -0.1])), "beta is tensor"),
        (lambda: Leaky(0.5, reset="later"), "reset is 'later', expected one of 'subtract'"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Neuron], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_printed_neuron_names_its_setting() -> None:
    assert "decay=0.75" in repr(LIF(4.0))
