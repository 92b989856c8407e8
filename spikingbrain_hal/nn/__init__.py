"""The layers of SpikingBrain models, and spiking neurons, on :mod:`spikingbrain_hal.ops`.

Norms are :class:`torch.nn.RMSNorm`, which rounds to the model's dtype once, after its weight, as
the kernels that trained SpikingBrain do.
"""

from .config import SpikingBrainConfig
from .gated_linear_attention import GatedLinearAttention, LinearState
from .layout import Layout
from .model import HybridBlock, SpikingBrain, State
from .neurons import IF, LIF, Leaky, Neuron, ParametricLIF
from .ring_cache import GrowingCache, RingCache
from .rotary import rotary_angles, rotate, turn
from .spike_linear import SpikeLinear, Spikes, encode_spikes, encode_weight, int8_round, spike_round
from .spiking import SpikeCoder, SpikeStatistics, SpikingLinear, SpikingMLP
from .windowed_attention import WindowedAttention

__all__ = [
    "IF",
    "LIF",
    "GatedLinearAttention",
    "GrowingCache",
    "HybridBlock",
    "Layout",
    "Leaky",
    "LinearState",
    "Neuron",
    "ParametricLIF",
    "RingCache",
    "SpikeCoder",
    "SpikeLinear",
    "SpikeStatistics",
    "Spikes",
    "SpikingBrain",
    "SpikingBrainConfig",
    "SpikingLinear",
    "SpikingMLP",
    "State",
    "WindowedAttention",
    "encode_spikes",
    "encode_weight",
    "int8_round",
    "rotary_angles",
    "rotate",
    "spike_round",
    "turn",
]
