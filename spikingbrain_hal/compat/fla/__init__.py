"""The modules of fla (flash-linear-attention, 0.1, 0.4 and current) that SpikingBrain's released code imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType

from .. import unpadding
from ..notices import warn_of_transformers
from . import activations, convolution, losses, normalization, support
from . import rotary as fla_rotary
from .ops import ABSENT, LinearAttention

PROFILES = {"0.1": "0.1.0", "0.4": "0.4.0", "current": "0.6.0"}

Names = Mapping[str, object]


def _pick(module: ModuleType, *names: str) -> dict[str, object]:
    return {name: getattr(module, name) for name in names}


def modules(profile: str, strict: bool) -> dict[str, Callable[[], Names]]:
    """What each module of one version holds, by its full name.

    Args:
        profile: One of :data:`PROFILES`.
        strict: Refuse calls that look like the other layout.
    """
    attention = LinearAttention(profile, strict)
    gla, linear = attention.functions("gla"), attention.functions("linear_attn")
    missing = {module: attention.absent(module) for module in ABSENT}
    old = profile == "0.1"
    norms = _pick(normalization, "RMSNorm", "LayerNorm", "GroupNorm")
    gated = _pick(normalization, "FusedRMSNormGated", "FusedRMSNormSwishGate", "FusedLayerNormGated")
    short = {"ShortConvolution": convolution.ShortConvolution01 if old else convolution.ShortConvolution}
    entropy = _pick(losses, "FusedCrossEntropyLoss")
    linear_loss, warp = losses.FusedLinearCrossEntropyLoss, losses.l2_warp
    if profile == "0.4":
        linear_loss, warp = losses.FusedLinearCrossEntropyLoss04, losses.l2_warp_04
    linear_entropy = {"FusedLinearCrossEntropyLoss": linear_loss}
    mlp = _pick(activations, "GatedMLP")
    rotation = _pick(fla_rotary, "RotaryEmbedding", "rotary_embedding")
    everything = {**norms, **gated, **short, **entropy, **linear_entropy, **mlp, **_pick(fla_rotary, "RotaryEmbedding")}
    index = _pick(unpadding, *(name for name in dir(unpadding) if name.startswith("prepare_")))

    def kernel_functions() -> Names:
        return _pick(import_module("triton.language"), "exp", "exp2", "log", "log2")

    def cache() -> Names:
        held = import_module(f"{__name__}.cache")
        warn_of_transformers(profile, stacklevel=3)  # the import statement of the client
        found = held.Cache01 if old else held.Cache
        return {"Cache": found, "FLAGenerationMixin": held.FLAGenerationMixin}

    if old:
        index["prepare_sequence_ids"] = unpadding.sequence_ids_of_positions
    table: dict[str, Callable[[], Names]] = {
        "fla": lambda: {"__version__": PROFILES[profile]},
        "fla.ops": lambda: {**gla, **linear, **missing["fla.ops.gated_delta_rule"], **missing["fla.ops.moba"]},
        "fla.ops.common.utils": lambda: index,
        "fla.ops.gla": lambda: gla,
        "fla.ops.linear_attn": lambda: linear,
        "fla.ops.utils": lambda: {**index},
        "fla.ops.utils.index": lambda: index,
        "fla.ops.utils.op": kernel_functions,
        "fla.modules": lambda: everything,
        "fla.modules.activations": lambda: {
            **_pick(activations, "sigmoid", "logsigmoid", "swish", "swiglu", "swiglu_linear", "sqrelu"),
            **_pick(activations, "fast_gelu_impl", "bias_gelu_impl", "ACT2FN"),
        },
        "fla.modules.convolution": lambda: {**short, "causal_conv1d": convolution.causal_conv1d},
        "fla.modules.fused_cross_entropy": lambda: entropy,
        "fla.modules.fused_linear_cross_entropy": lambda: linear_entropy,
        "fla.modules.fused_norm_gate": lambda: gated,
        "fla.modules.l2norm": lambda: {**_pick(normalization, "l2norm", "L2Norm"), "l2_norm": normalization.l2norm},
        "fla.modules.l2warp": lambda: {"l2_warp": warp},
        "fla.modules.layernorm": lambda: norms,
        "fla.modules.mlp": lambda: {**mlp, **_pick(activations, "SwiGLULinear")},
        "fla.modules.rotary": lambda: rotation,
        "fla.layers.utils": lambda: {
            **_pick(unpadding, "pad_input", "get_unpad_data", "index_first_axis", "index_put_first_axis"),
            "unpad_input": unpadding.unpad_fla,
        },
        "fla.models.modeling_layers": lambda: _pick(
            import_module("transformers.modeling_layers"), "GradientCheckpointingLayer"
        ),
        "fla.models.utils": cache,
        "fla.utils": support.names,
    }
    return table | {module: (lambda names=names: names) for module, names in missing.items()}
