"""Small checkpoints under the released names, written without the code that is tested."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GROUP, HIDDEN, KV, MLP, VOCAB = 32, 128, 32, 96, 50
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}
ATTENTION = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (KV, HIDDEN), "v_proj": (KV, HIDDEN), "o_proj": (HIDDEN, HIDDEN)}
MLPS = {"gate_proj": (MLP, HIDDEN), "up_proj": (MLP, HIDDEN), "down_proj": (HIDDEN, MLP)}


def write_file(path: Path, tensors: dict[str, Tensor]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        span = [len(body), len(body) + len(content)]
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        body += content
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors that the index names, read by the format's description."""
    dtypes = {name: dtype for dtype, name in NAMES.items()} | {"I8": torch.int8, "I16": torch.int16}
    found = {}
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for file in sorted(set(weight_map.values())):
        content = (folder / file).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        for name, entry in json.loads(content[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            assert weight_map[name] == file
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            assert first % dtypes[entry["dtype"]].itemsize == 0
            tensor = torch.frombuffer(bytearray(content[first:last]), dtype=dtypes[entry["dtype"]])
            found[name] = tensor.view(entry["shape"])
    assert found.keys() == weight_map.keys()
    return found


def plain_tensors(layers: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Linear layers are the even ones, with a low-rank gate."""

    def weight(*shape: int) -> Tensor:
        return (0.02 * torch.randn(shape)).to(dtype)

    tensors = {"model.embeddings.weight": weight(VOCAB, HIDDEN)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        tensors[prefix + "attn_norm.weight"] = weight(HIDDEN)
        for name, shape in ATTENTION.items():
            tensors[prefix + f"attn.{name}.weight"] = weight(*shape)
            if name != "o_proj":
                tensors[prefix + f"attn.{name}.bias"] = weight(shape[0])
        if i % 2 == 0:
            tensors[prefix + "attn.gk_proj.0.weight"] = weight(8, HIDDEN)
            tensors[prefix + "attn.gk_proj.1.weight"] = weight(KV, 8)
            tensors[prefix + "attn.gk_proj.1.bias"] = weight(KV)
            tensors[prefix + "attn.g_norm.weight"] = weight(16)
        tensors[prefix + "mlp_norm.weight"] = weight(HIDDEN)
        for name, shape in MLPS.items():
            tensors[prefix + f"mlp.{name}.weight"] = weight(*shape)
    tensors["model.layers.0.mlp.gate_proj.weight"][3] = 0  # a row whose groups are all zero
    tensors |= {"model.norm.weight": weight(HIDDEN), "lm_head.weight": weight(VOCAB, HIDDEN)}
    return tensors


def w8aspike_tensors(layers: int, largest: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint in the released layout, and the integers that its weights stand for, by layer."""
    tensors, integers = {}, {}
    for name, tensor in plain_tensors(layers, torch.float32).items():
        if "gk_proj" in name:
            if name.endswith("0.weight"):
                continue
            name = name.replace("gk_proj.1", "gk_proj")
            tensor = 0.02 * torch.randn(KV, HIDDEN) if name.endswith("weight") else tensor
        tensors[name] = tensor
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj"):
            continue
        codes = torch.randint(-120, 121, tensor.shape)
        if layer.endswith("q_proj"):
            codes[0, 0], codes[-1, -1] = largest, -largest
        scales = torch.rand(tensor.shape[0], tensor.shape[1] // GROUP, 1) * 1e-2 + 1e-4
        nearly = codes + 0.4 * (torch.rand(tensor.shape) - 0.5)
        tensors[name] = (nearly.unflatten(1, (-1, GROUP)) * scales).flatten(1)
        tensors[layer + ".weight_quantizer.scales"] = scales
        integers[layer] = codes
    return tensors, integers


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], layers: int, shards: int = 3, **config: Any) -> Path:
    folder.mkdir()
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[i * len(names) // shards : (i + 1) * len(names) // shards]}
        write_file(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    content = {"model_type": "gla_swa", "num_hidden_layers": layers, "hidden_size": HIDDEN, **config}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text("{}")
    return folder
