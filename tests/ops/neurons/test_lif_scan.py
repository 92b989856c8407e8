"""lif_scan where a potential is infinite or NaN: every surrogate is its formula there, whoever computes it."""

from __future__ import annotations

import math

import pytest
import torch

from spikingbrain_hal import ops, use_backend
from spikingbrain_hal.ops.neurons.surrogates import SURROGATES

CURRENTS = (math.inf, -math.inf, math.nan)
ALPHA, BETA = 2.0, 0.125
ZERO_THEN_NAN = (0.0, 0.0, math.nan)
SLOPES = dict.fromkeys(SURROGATES, ZERO_THEN_NAN) | {
    "rect": (0.0, 0.0, 0.0),
    "piecewise_linear": (BETA, BETA, BETA),
    "leaky_relu": (ALPHA, BETA, BETA),
    "straight_through": (1.0, 1.0, 1.0),
    "rect_count": (0.0, 0.0, 0.0),
    "periodic_exponential": (math.nan, 0.0, math.nan),  # there is no limit: the nearest multiple is infinite too
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("max_count", [1, 4])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_surrogate_is_its_formula(surrogate: str, max_count: int, backend: str) -> None:
    x = torch.tensor([CURRENTS], requires_grad=True)
    with use_backend(backend):
        spikes, _ = ops.lif_scan(
            x, input_gain=1.0, reset="none", max_count=max_count, surrogate=surrogate, alpha=ALPHA, beta=BETA
        )
    spikes.sum().backward()
    assert spikes.tolist() == [[max_count, 0.0, 0.0]]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([SLOPES[surrogate]]), equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_reset_leaves_no_trace_of_an_infinite_potential(backend: str) -> None:
    x = torch.tensor([CURRENTS, (0.0, 0.0, 0.0)])
    with use_backend(backend):
        _, _, v = ops.lif_scan(x, input_gain=1.0, v_reset=0.25, return_v=True)
        _, floored, _ = ops.lif_scan(x, input_gain=1.0, v_reset=0.25, v_min=-1.0, return_v=True)
    expected = torch.tensor([[0.25, -math.inf, math.nan], [0.125, -math.inf, math.nan]])
    torch.testing.assert_close(v, expected, equal_nan=True)
    torch.testing.assert_close(floored, torch.tensor([0.125, -0.5, math.nan]), equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_a_detached_reset_hides_has_no_gradient(backend: str) -> None:
    """The first step fires, and its reset hides it from the NaN that follows."""
    x = torch.tensor([[2.0], [math.nan]], requires_grad=True)
    with use_backend(backend):
        _, v = ops.lif_scan(x, input_gain=1.0, detach_reset=True, surrogate="rect", alpha=2.0)
    (2 * v + v * v).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0], [math.nan]]), equal_nan=True)
