"""The configuration of SpikingBrain-1.0 models, in the keys of their own config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from ..packing import FORMAT_VERSION
from .config_checks import FOREIGN, LAYERS, check, check_foreign, refuse, warn_of_unknown


class GLAswaConfig(PretrainedConfig):
    """Sizes and variants of a ``gla_swa`` model; the defaults are SpikingBrain-1.0 7B.

    The first group of keys is that of the released config.json. ``attn_mode``, ``conv_size`` and
    ``fuse_cross_entropy`` choose among implementations there and change nothing here. The second group is that of the
    released layers' constructors, the rest is ours. Keys of other models that would change the arithmetic, as
    ``rope_scaling`` or ``layer_types``, are refused where they say something else; of other unknown keys it warns.

    Args:
        vocab_size: How many tokens there are.
        hidden_size: Channels of the residual stream; ``num_attention_heads`` divides it.
        num_hidden_layers: How many blocks.
        attn_mode: Not used: the operators choose their kernels.
        num_attention_heads: Query heads, a multiple of num_key_value_heads.
        num_key_value_heads: Key/value heads; num_attention_heads if None.
        use_short_conv: Must be False, as in every released checkpoint.
        conv_size: Not used.
        intermediate_size: Channels inside an MLP, and inside each expert.
        hidden_act: ``"swish"`` or ``"silu"``, which are the same.
        max_position_embeddings: Longest sequence that the weights were trained on; not enforced.
        sliding_window: Keys before its own that a query of a windowed layer sees: it sees ``sliding_window + 1``.
        elementwise_affine: Must be True, as in every released checkpoint.
        norm_eps: Added to mean squares in every norm.
        rope_theta: Base of the rotary embedding's wavelengths.
        attention_dropout: Must be 0, as in every released checkpoint.
        use_cache: Return the cache by default, outside training.
        pad_token_id: Token that pads a batch.
        bos_token_id: Token that begins a text.
        eos_token_id: Token that ends a text.
        tie_word_embeddings: Use the embedding as the output projection.
        initializer_range: Standard deviation of new weights.
        fuse_cross_entropy: Not used.
        attn_layers: Layers, from 0, with windowed attention; the others are linear. The odd ones if None.
        gate_low_rank_dim: Rank of the projection that gives the log decays.
        gate_logit_normalizer: The log decays are divided by this.
        released_decode_window: Decode as the released code does, which sees ``sliding_window`` keys when it reads
            one token on a cache, one fewer than in training and prefill, so its own decode departs from its prefill.
        w8aspike: The projections have integer weights and read spikes, queries of windowed layers are spikes, their
            keys and values 8-bit integers. Found out by itself from a released checkpoint, whose config.json does
            not say it.
        quant_weight_group_size: Inputs that share a scale in a W8ASpike projection.
        spike_k: Mean spike count of a row in a W8ASpike model.
        spike_down_proj: Let the down projection of a W8ASpike model read spikes too, with its integer weights. The
            released code leaves it in floating point.
        packing: What ``sbhal pack`` writes of its integers; sets the four keys before.
        parallel_attention: Every layer has a linear and a softmax branch on the same projections, as in the 76B
            model; attn_layers is then not used.
        full_attn_layers: Layers, from 0, whose softmax branch sees all keys; needs parallel_attention.
        key_tied_decay: The memory decays by ``1 - k`` with ``k = sigmoid(z)``, so there is no gate projection; the
            query is a sigmoid too.
        num_sink_tokens: Learnt tokens before every text. All tokens attend to them; they attend to each other
            without causal mask, and not to the text.
        num_experts: Routed experts of a sparse layer; 0 makes every layer dense.
        num_experts_per_tok: Routed experts that read each token.
        num_shared_experts: Experts that read every token.
        dense_layers: Layers, from 0, with one MLP instead of experts.
        **kwargs: Those of every transformers configuration.

    Raises:
        ValueError: A value is not supported, or sizes disagree.

    Source: SpikingBrain technical report, section 3.
    """

    model_type = "gla_swa"
    keys_to_ignore_at_inference = ("past_key_values",)
    int8_projections: Any = ()  # set while a checkpoint is loaded: transformers casts to the type that a model declares

    def __init__(
        self,
        vocab_size: int = 152_064,
        hidden_size: int = 3584,
        num_hidden_layers: int = 28,
        attn_mode: str = "chunk",
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        use_short_conv: bool = False,
        conv_size: int = 4,
        intermediate_size: int = 18_944,
        hidden_act: str = "swish",
        max_position_embeddings: int = 131_072,
        sliding_window: int = 4096,
        elementwise_affine: bool = True,
        norm_eps: float = 1e-6,
        rope_theta: float = 1e6,
        attention_dropout: float = 0.0,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 151_643,
        eos_token_id: int | None = 151_643,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        fuse_cross_entropy: bool = True,
        attn_layers: Sequence[int] | None = None,
        gate_low_rank_dim: int = 16,
        gate_logit_normalizer: float = 16,
        released_decode_window: bool = False,
        w8aspike: bool = False,
        quant_weight_group_size: int = 128,
        spike_k: float = 3.0,
        spike_down_proj: bool = False,
        packing: dict[str, Any] | None = None,
        parallel_attention: bool = False,
        full_attn_layers: Sequence[int] = (),
        key_tied_decay: bool = False,
        num_sink_tokens: int = 0,
        num_experts: int = 0,
        num_experts_per_tok: int = 1,
        num_shared_experts: int = 1,
        dense_layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.attn_mode = attn_mode
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.use_short_conv = use_short_conv
        self.conv_size = conv_size
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.sliding_window = sliding_window
        self.elementwise_affine = elementwise_affine
        self.norm_eps = norm_eps
        self.rope_theta = rope_theta
        self.attention_dropout = attention_dropout
        self.use_cache = use_cache
        self.initializer_range = initializer_range
        self.fuse_cross_entropy = fuse_cross_entropy
        odd = range(1, num_hidden_layers, 2) if isinstance(num_hidden_layers, int) else None
        self.attn_layers = odd if attn_layers is None else attn_layers
        self.gate_low_rank_dim = gate_low_rank_dim
        self.gate_logit_normalizer = gate_logit_normalizer
        self.released_decode_window = released_decode_window
        self.w8aspike = w8aspike
        self.quant_weight_group_size = quant_weight_group_size
        self.spike_k = spike_k
        self.spike_down_proj = spike_down_proj
        if packing is not None:
            keys = {"format_version", "group_size", "spike_k", "projections"}
            if not isinstance(packing, dict):
                refuse("packing", packing, "a dict")
            if packing.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
                raise ValueError(
                    f"GLAswaConfig: packing has format_version {packing['format_version']}, expected {FORMAT_VERSION}"
                )
            if not keys <= packing.keys():
                refuse("packing", packing, f"the keys {', '.join(sorted(keys))}, as sbhal pack writes them")
            self.packing = packing
            self.w8aspike = True
            self.quant_weight_group_size = packing["group_size"]
            self.spike_k = packing["spike_k"]
            self.spike_down_proj = "down_proj" in packing["projections"]
        self.parallel_attention = parallel_attention
        self.full_attn_layers = full_attn_layers
        self.key_tied_decay = key_tied_decay
        self.num_sink_tokens = num_sink_tokens
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_shared_experts = num_shared_experts
        self.dense_layers = dense_layers
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.check({name: kwargs.pop(name) for name in FOREIGN if name in kwargs})
        for name in LAYERS:
            setattr(self, name, list(getattr(self, name)))
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        warn_of_unknown(self, kwargs)

    @property
    def head_dim(self) -> int:
        """Channels of each head."""
        return self.hidden_size // self.num_attention_heads

    def check(self, foreign: Mapping[str, Any] | None = None) -> None:
        """Looks at each value, also those that were set later.

        Args:
            foreign: Keys of other models that were given.

        Raises:
            ValueError: A value is not supported, or two of them disagree.
        """
        check(self)
        check_foreign(self, vars(self) if foreign is None else foreign)

    @classmethod
    def spikingbrain_76b(cls, **changes: Any) -> GLAswaConfig:
        """The architecture of SpikingBrain-1.0 76B-A12B.

        Its weights are not released, so the names of its tensors are ours. What the report leaves open is settled
        by its sizes: with the widths of the 7B model, and one set of q, k, v and o projections for both branches, it
        has 76.06 billion parameters, 11.9 billion of them active; a set for each branch would make it 76.9 and 12.7.

        Args:
            **changes: Other values for any key.

        Source: SpikingBrain technical report, section 3 and eqs. 6, 16-17.
        """
        published = dict(
            parallel_attention=True,
            full_attn_layers=[6, 13, 20, 27],
            key_tied_decay=True,
            num_sink_tokens=128,
            num_experts=16,
            dense_layers=[0, 1, 2, 4, 6, 8, 10],
        )
        return cls(**{**published, **changes})
