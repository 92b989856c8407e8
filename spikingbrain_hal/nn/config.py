"""The sizes of a SpikingBrain model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpikingBrainConfig:
    """Sizes of a model of SpikingBrain-7B's shape; the defaults give a small byte-level one.

    Args:
        vocab_size: How many tokens there are; 256 reads bytes.
        hidden_size: Channels of the residual stream.
        layers: How many blocks; even ones have linear attention, odd ones windowed attention.
        query_heads: Query heads of each layer, a multiple of kv_heads.
        kv_heads: Key/value heads of each layer; a linear layer keeps one memory for each.
        head_dim: Channels of each head, even.
        mlp_size: Channels inside the MLP.
        window: Keys that a query of a windowed layer sees, its own included.
        gate_rank: Rank of the projection that gives the log decays.
        gate_divisor: The log decays are divided by this, which makes memories longer.
        rope_theta: Base of the rotary embedding's wavelengths.
        norm_eps: Added to mean squares in every norm.
        spike_k: Mean spike count of each row that is spike-coded.
        spiking_projections: Spike-code the inputs of the q, k, v and o projections too, as the
            released W8ASpike models do; those of the MLP's gate and up projections always are.

    Raises:
        ValueError: kv_heads does not divide query_heads, or head_dim is odd.

    Source: SpikingBrain technical report, section 3.
    """

    vocab_size: int = 256
    hidden_size: int = 256
    layers: int = 4
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp_size: int = 512
    window: int = 256
    gate_rank: int = 16
    gate_divisor: float = 16.0
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    spike_k: float = 3.0
    spiking_projections: bool = False

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads is {self.query_heads}, expected a multiple of kv_heads, which is {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number")

    @classmethod
    def spikingbrain_7b(cls) -> SpikingBrainConfig:
        """The sizes of SpikingBrain-1.0 7B: 7 616 542 976 parameters in 395 tensors."""
        return cls(
            vocab_size=152_064,
            hidden_size=3584,
            layers=28,
            query_heads=28,
            kv_heads=4,
            head_dim=128,
            mlp_size=18_944,
            window=4096,
        )
