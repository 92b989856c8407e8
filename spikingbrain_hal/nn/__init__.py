"""The layers of SpikingBrain models, and spiking neurons, on :mod:`spikingbrain_hal.ops`.

Norms are :class:`torch.nn.RMSNorm`, which rounds to the model's dtype once, after its weight, as
the kernels that trained SpikingBrain do.
"""

from .config import SpikingBrainConfig
from .gated_linear_attention import GatedLinearAttention, LinearState
from .model import HybridBlock, SpikingBrain, State
from .neurons import IF, LIF, Leaky, Neuron, ParametricLIF
from .rotary import rotate
from .spiking import SpikeCoder, SpikeStatistics, SpikingLinear, SpikingMLP
from .windowed_attention import RingCache, WindowedAttention

__all__ = [
    "IF",
    "LIF",
    "GatedLinearAttention",
    "HybridBlock",
    "Leaky",
    "LinearState",
    "Neuron",
    "ParametricLIF",
    "RingCache",
    "SpikeCoder",
    "SpikeStatistics",
    "SpikingBrain",
    "SpikingBrainConfig",
    "SpikingLinear",
    "SpikingMLP",
    "State",
    "WindowedAttention",
    "rotate",
]
