"""Spike-coded layers, and the statistics of their spikes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spikingbrain_hal import ops
from spikingbrain_hal.nn import SpikeCoder, SpikeStatistics, SpikingBrainConfig, SpikingLinear, SpikingMLP


def test_coder_gives_whole_multiples_of_the_threshold() -> None:
    x = torch.randn(5, 32)
    counts, threshold = ops.spike_encode(x, 2.0)
    torch.testing.assert_close(SpikeCoder(2.0)(x), counts * threshold)


def test_gradient_passes_straight_through_the_coder() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    SpikeCoder()(x).mul(torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(8.0).expand(3, 8))


def test_spiking_linear_reads_spikes() -> None:
    layer, x = SpikingLinear(8, 3), torch.randn(4, 8)
    expected = F.linear(SpikeCoder()(x), layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_mlp_codes_the_inputs_of_gate_and_up_alone() -> None:
    mlp, x = SpikingMLP(SpikingBrainConfig(hidden_size=8, mlp_size=12)), torch.randn(4, 8)
    s = SpikeCoder()(x)
    inner = F.silu(s @ mlp.gate_proj.weight.T) * (s @ mlp.up_proj.weight.T)
    torch.testing.assert_close(mlp(x), inner @ mlp.down_proj.weight.T)


def test_statistics_of_a_few_counts() -> None:
    found = SpikeStatistics.of(torch.tensor([0, 0, 5, -5, 8, 3, 0, -7], dtype=torch.int16))
    assert found.zero_counts == 3 / 8
    assert found.zero_slots == 1 - (2 + 2 + 0 + 2 + 3) / 24  # the lowest three bits of 8 are empty
    assert found.spikes_per_channel == (2 + 2 + 1 + 2 + 3) / 8
    assert found.within_three_bits == 7 / 8


def test_statistics_of_normal_activations() -> None:
    """Under ``V = E|x| / 3`` a count is zero where ``|x| < V / 2``: 10.6 % of a normal variable."""
    counts, _ = ops.spike_encode(torch.randn(400, 4096))
    found = SpikeStatistics.of(counts)
    assert found.zero_counts == pytest.approx(0.106, abs=2e-3)
    assert found.spikes_per_channel == pytest.approx(1.30, abs=1e-2)
    assert found.zero_slots == pytest.approx(0.582, abs=5e-3)
    assert found.within_three_bits == pytest.approx(0.954, abs=3e-3)


def test_printed_model_names_the_mean_count() -> None:
    assert repr(SpikeCoder(2.5)) == "SpikeCoder(k=2.5)"
