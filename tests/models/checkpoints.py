"""Small random checkpoints in the released layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["GLAswaForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_gla_swa.GLAswaConfig",
        "AutoModelForCausalLM": "modeling_gla_swa.GLAswaForCausalLM",
    },
    "attention_dropout": 0.0,
    "attn_layers": [1, 3],
    "attn_mode": "chunk",
    "bos_token_id": 1,
    "conv_size": 4,
    "elementwise_affine": True,
    "eos_token_id": 1,
    "fuse_cross_entropy": True,
    "hidden_act": "swish",
    "hidden_size": 56,
    "initializer_range": 0.02,
    "intermediate_size": 80,
    "max_position_embeddings": 1024,
    "model_type": "gla_swa",
    "norm_eps": 1e-6,
    "num_attention_heads": 14,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "sliding_window": 6,
    "tie_word_embeddings": False,
    "transformers_version": "4.45.0",
    "use_cache": True,
    "use_short_conv": False,
    "vocab_size": 61,
}

GROUP = 32
W8ASPIKE: dict[str, Any] = {**CONFIG, "hidden_size": 224, "intermediate_size": 96}

PARALLEL: dict[str, Any] = {
    **{key: value for key, value in CONFIG.items() if key not in ("auto_map", "attn_layers")},
    "num_hidden_layers": 3,
    "parallel_attention": True,
    "full_attn_layers": [2],
    "key_tied_decay": True,
    "num_sink_tokens": 5,
    "num_experts": 4,
    "dense_layers": [0],
}


def _projection(name: str, inputs: int, outputs: int, bias: bool, group: int | None) -> dict[str, Tensor]:
    tensors = {name + ".weight": torch.randn(outputs, inputs) * inputs**-0.5}
    if bias:
        tensors[name + ".bias"] = 0.3 * torch.randn(outputs)
    if group:
        grouped = tensors[name + ".weight"].view(outputs, inputs // group, group)
        # integers that leave 8 bits, as those of the released checkpoint do
        tensors[name + ".weight_quantizer.scales"] = grouped.abs().amax(-1, keepdim=True) / 190
    return tensors


def random_tensors(config: dict[str, Any], group: int | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint under their names on disk; with a group size those of a W8ASpike one."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = hidden // config["num_attention_heads"]
    kv = dim * config["num_key_value_heads"]
    tensors = {
        "model.embeddings.weight": torch.randn(vocab, hidden),
        "model.norm.weight": 1 + 0.1 * torch.randn(hidden),
        "lm_head.weight": torch.randn(vocab, hidden) * hidden**-0.5,
    }
    if config.get("num_sink_tokens"):
        tensors["model.sink_tokens"] = torch.randn(config["num_sink_tokens"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer, attn, mlp = (f"model.layers.{i}.{part}" for part in ("", "attn.", "mlp."))
        parallel = config.get("parallel_attention", False)
        for name in ("attn_norm", "mlp_norm"):
            tensors[f"{layer}{name}.weight"] = 1 + 0.1 * torch.randn(hidden)
        for name, size in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            tensors |= _projection(attn + name, hidden, size, True, group)
        tensors |= _projection(attn + "o_proj", hidden, hidden, False, group)
        if parallel:
            tensors[attn + "s_norm.weight"] = 1 + 0.1 * torch.randn(dim)
            tensors[attn + "branch_weights"] = torch.tensor([0.7, 0.4])
        elif i % 2 == 0 and group:
            tensors |= _projection(attn + "gk_proj", hidden, kv, True, group)
        elif i % 2 == 0:
            tensors |= _projection(attn + "gk_proj.0", hidden, 16, False, None)
            tensors |= _projection(attn + "gk_proj.1", 16, kv, True, None)
        if parallel or i % 2 == 0:
            tensors[attn + "g_norm.weight"] = 1 + 0.1 * torch.randn(dim)
        experts = config.get("num_experts", 0)
        if experts and i not in config["dense_layers"]:
            tensors[mlp + "router.weight"] = torch.randn(experts, hidden)
            for name, shape in (
                ("gate_proj", (inner, hidden)),
                ("up_proj", (inner, hidden)),
                ("down_proj", (hidden, inner)),
            ):
                tensors[mlp + name] = torch.randn(experts, *shape) * shape[1] ** -0.5
            mlp += "shared."
        for name, inputs, outputs in (
            ("gate_proj", hidden, inner),
            ("up_proj", hidden, inner),
            ("down_proj", inner, hidden),
        ):
            tensors |= _projection(mlp + name, inputs, outputs, False, group)
    return tensors


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """Writes a checkpoint as safetensors; shards are cut without regard to layers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = sorted(tensors)
    weight_map = {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[n::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
