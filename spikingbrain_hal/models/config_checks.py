"""Which values the keys of a ``gla_swa`` configuration may have, and what keys of other models' would mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig

from ..ops.linear.spike_linear import GROUP_SIZES

SMALLEST = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
    "sliding_window": 1,
    "gate_low_rank_dim": 1,
    "quant_weight_group_size": 1,
    "num_experts_per_tok": 1,
    "num_sink_tokens": 0,
    "num_experts": 0,
    "num_shared_experts": 0,
}
POSITIVE = ("norm_eps", "rope_theta", "gate_logit_normalizer", "spike_k")
FLAGS = (
    "w8aspike",
    "spike_down_proj",
    "released_decode_window",
    "parallel_attention",
    "key_tied_decay",
    "tie_word_embeddings",
)
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "attn_mode": ("chunk", "fused_chunk", "fused_recurrent"),
    "use_short_conv": (False,),
    "attention_dropout": (0,),
    "hidden_act": ("swish", "silu"),
    "elementwise_affine": (True,),
}
LAYERS = ("attn_layers", "full_attn_layers", "dense_layers")
FOREIGN = (
    "head_dim",
    "layer_types",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "use_sliding_window",
)
"""Keys that other models have, for what this one has no choice in or says elsewhere."""
WRITTEN_BY_TRANSFORMERS = {"auto_map", "dtype", "quantization_config", "torch_dtype", "transformers_weights"}
"""Keys beside those of every configuration that some version writes."""


def refuse(name: str, value: Any, expected: str) -> None:
    """Raises the error for a key whose value is not served."""
    raise ValueError(f"GLAswaConfig: {name} is {value!r}, expected {expected}")


def check(config: Any) -> None:
    """Looks at each value of a configuration.

    Raises:
        ValueError: A value is not served, or two of them disagree.
    """
    for name, smallest in SMALLEST.items():
        value = getattr(config, name)
        if not _is_integer(value) or value < smallest:
            refuse(name, value, f"an integer of at least {smallest}")
    for name in (*POSITIVE, "initializer_range"):
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and name in POSITIVE):
            refuse(name, value, "a number above 0" if name in POSITIVE else "a number of at least 0")
    for name in FLAGS:
        if not isinstance(getattr(config, name), bool):
            refuse(name, getattr(config, name), "True or False")
    for name, accepted in ACCEPTED.items():
        if getattr(config, name) not in accepted:
            refuse(name, getattr(config, name), " or ".join(map(repr, accepted)))
    for name in LAYERS:
        _check_layers(name, getattr(config, name), config.num_hidden_layers)
    if config.pad_token_id is not None and not (
        _is_integer(config.pad_token_id) and 0 <= config.pad_token_id < config.vocab_size
    ):
        refuse("pad_token_id", config.pad_token_id, f"None or a token from 0 to {config.vocab_size - 1}")
    _check_together(config)


def check_foreign(config: Any, keys: Mapping[str, Any]) -> None:
    """Holds the keys by which other models say the same to what a configuration says.

    Args:
        config: The configuration, checked.
        keys: Further keys, those of :data:`FOREIGN` among them; None is absent.

    Raises:
        ValueError: One of them asks for something else.
    """
    types = [
        "sliding_attention" if i in config.attn_layers else "linear_attention" for i in range(config.num_hidden_layers)
    ]
    agreeing = {
        "head_dim": config.head_dim,
        "layer_types": None if config.parallel_attention else types,
        "partial_rotary_factor": 1,
        "rms_norm_eps": config.norm_eps,
        "use_sliding_window": True,
    }
    for name in FOREIGN:
        value = keys.get(name)
        if value is None:
            continue
        if name in agreeing:
            if value != agreeing[name]:
                refuse(name, value, f"{agreeing[name]!r}, as the other keys say")
            continue
        plain = {"type": "default", "rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1}
        if not isinstance(value, Mapping) or any(
            key not in plain or value[key] not in (None, plain[key]) for key in value
        ):
            refuse(name, value, f"the plain rotary embedding, {plain}")


def warn_of_unknown(config: Any, keys: Iterable[str]) -> None:
    """Warns of further keys that neither this model nor transformers has a meaning for."""
    common = vars(PretrainedConfig()).keys() | WRITTEN_BY_TRANSFORMERS
    unknown = [
        k for k in keys if k in vars(config) and k not in common and k[0] != "_" and not hasattr(PretrainedConfig, k)
    ]
    if unknown:
        warnings.warn(
            f"GLAswaConfig: {', '.join(sorted(unknown))} is no key of this model and changes nothing", stacklevel=3
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_layers(name: str, layers: Any, count: int) -> None:
    listed = isinstance(layers, list | tuple | range)
    if not listed or not all(_is_integer(i) and 0 <= i < count for i in layers) or len({*layers}) < len(layers):
        refuse(name, layers, f"a list of different layers from 0 to {count - 1}")


def _check_together(config: Any) -> None:
    for name, divisor in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
        if getattr(config, name) % getattr(config, divisor):
            refuse(name, getattr(config, name), f"a multiple of {divisor}, which is {getattr(config, divisor)}")
    if config.head_dim % 2:
        raise ValueError(f"GLAswaConfig: heads have {config.head_dim} channels, expected an even number")
    if config.full_attn_layers and not config.parallel_attention:
        refuse("full_attn_layers", config.full_attn_layers, "none without parallel_attention")
    if config.num_experts and config.num_experts_per_tok > config.num_experts:
        refuse("num_experts_per_tok", config.num_experts_per_tok, f"at most num_experts, which is {config.num_experts}")
    if not config.w8aspike:
        return
    if config.num_experts:
        refuse("num_experts", config.num_experts, "0 with w8aspike")
    group = config.quant_weight_group_size
    if group not in GROUP_SIZES:
        refuse("quant_weight_group_size", group, f"one of {GROUP_SIZES} with w8aspike")
    for name in ("hidden_size", *(("intermediate_size",) if config.spike_down_proj else ())):
        if getattr(config, name) % group:
            refuse(name, getattr(config, name), f"a multiple of quant_weight_group_size, which is {group}")
