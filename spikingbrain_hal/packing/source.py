"""A checkpoint to pack: what it holds, and whether all of it is there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError, Stored, read_config, read_tensors
from ..checkpoint.folder import CONFIG, LAYER, require_layers

SCALES = ".weight_quantizer.scales"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gk_proj", "gate_proj", "up_proj")


class PackingError(CheckpointError):
    """A checkpoint cannot be packed, or a packed one cannot be used."""


@dataclass(frozen=True)
class Copied:
    """A tensor that stays as it is, perhaps under another name."""

    name: str
    tensor: Stored

    @property
    def names(self) -> list[str]:
        """Of the packed tensors."""
        return [self.name]


@dataclass(frozen=True)
class Linear:
    """A projection to pack.

    Attributes:
        name: Of the layer, without ``.weight``.
        weight: [out, in]; of a low-rank gate its first factor, [rank, in].
        scales: Of a W8ASpike layer, [out, in / group_size] or with one more axis of size 1.
        factor: The second factor of a low-rank gate, [out, rank].
        group_size: Inputs that share a scale.
    """

    name: str
    weight: Stored
    scales: Stored | None
    factor: Stored | None
    group_size: int

    @property
    def names(self) -> list[str]:
        """Of the packed tensors."""
        return [self.name + ".codes", self.name + ".scales"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the packed integers, [out, in]."""
        return (self.factor or self.weight).shape[0], self.weight.shape[1]


@dataclass(frozen=True)
class Source:
    """A checkpoint.

    Attributes:
        folder: Where it lies.
        config: The content of its config.json, but for what names code.
        kind: ``"w8aspike"`` or ``"float"``.
        files: Its files of tensors.
        parts: What its packed form is made of, in the order of the source's bytes.
    """

    folder: Path
    config: dict[str, Any]
    kind: str
    files: list[Path]
    parts: list[Copied | Linear]


def open_source(folder: Path, group_size: int, down_proj: bool) -> Source:
    """Finds out what a checkpoint holds, from its headers alone.

    Args:
        folder: Folder of safetensors with a config.json.
        group_size: Inputs that share a scale.
        down_proj: Pack the down projections too.

    Raises:
        CheckpointError: Something is missing, cut off, or of another kind than a dense ``gla_swa`` model.
    """
    if not folder.is_dir():
        raise PackingError(f"SRC is {folder}, expected the folder of a checkpoint")
    config = _read_config(folder)
    tensors = read_tensors(folder)
    kind = "w8aspike" if any(name.endswith(SCALES) for name in tensors) else "float"
    wanted = (*PROJECTIONS, "down_proj") if down_proj else PROJECTIONS
    _require_layers(folder, config, tensors)
    parts: list[Copied | Linear] = []
    for name, tensor in tensors.items():
        layer, _, rest = name.rpartition(".")
        if name.endswith((SCALES, "gk_proj.1.weight")):
            continue  # read with the weight that they belong to
        if name.endswith("gk_proj.0.weight"):
            layer = layer.removesuffix(".0")
            if layer + ".1.weight" not in tensors:
                raise PackingError(f"{layer}.1.weight is missing, the second factor of {name}")
        if LAYER.search(name) and rest == "weight" and layer.rpartition(".")[2] in wanted:
            parts.append(_linear(layer, tensor, tensors, kind, group_size))
        else:
            parts.append(Copied(name.replace("gk_proj.1.bias", "gk_proj.bias"), tensor))
    twice = [name for name, n in Counter(name for part in parts for name in part.names).items() if n > 1]
    if twice:
        raise PackingError(f"{folder}: two of its tensors would be {twice[0]}, packed")
    files = sorted({tensor.path for tensor in tensors.values()})
    return Source(folder, config, kind, files, parts)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    if "packing" in config:
        raise PackingError(f"{folder} is packed already")
    if config.get("num_experts"):
        raise PackingError(
            f"{folder / CONFIG}: num_experts is {config['num_experts']}, expected a model without experts"
        )
    return config


def _require_layers(folder: Path, config: dict[str, Any], tensors: dict[str, Stored]) -> None:
    """Every layer has its projections: a checkpoint that lost a shard is not packed as if it were whole."""
    layers = require_layers(folder, config, tensors)
    has: dict[int, set[str]] = {}
    for name in tensors:
        if (found := LAYER.search(name)) and name.endswith("_proj.weight"):
            has.setdefault(int(found[1]), set()).add(name.split(".")[-2])
    everywhere = {*PROJECTIONS, "down_proj"} - {"gk_proj"}
    for layer in range(layers):
        absent = sorted(everywhere - has.get(layer, set()))
        if absent:
            raise PackingError(f"{folder}: layer {layer} of {layers} has no {', '.join(absent)}; is a shard missing?")


def _linear(layer: str, weight: Stored, tensors: dict[str, Stored], kind: str, group_size: int) -> Linear:
    factor = tensors.get(layer + ".1.weight")
    scales = tensors.get(layer + SCALES)
    if kind == "w8aspike" and scales is None:
        raise PackingError(f"{layer}{SCALES} is missing, though other layers have theirs")
    found = Linear(layer, weight, scales, factor, group_size)
    for tensor in (weight, factor, scales):
        if tensor is not None and not tensor.dtype.is_floating_point:
            raise PackingError(f"{tensor.name} has dtype {tensor.dtype}, expected a float")
    if len(weight.shape) != 2 or (factor and (len(factor.shape) != 2 or factor.shape[1] != weight.shape[0])):
        shapes = [list(t.shape) for t in (weight, factor) if t]
        raise PackingError(f"{weight.name} has shape {shapes}, expected a matrix, or two factors of one")
    out, inputs = found.shape
    if not all(n for tensor in (weight, factor) if tensor for n in tensor.shape):
        raise PackingError(f"{weight.name} is {out} x {inputs}, expected a matrix with elements")
    if inputs % group_size:
        raise PackingError(f"{weight.name} has {inputs} inputs, expected a multiple of group_size, {group_size}")
    if scales and scales.shape not in ((out, inputs // group_size), (out, inputs // group_size, 1)):
        raise PackingError(
            f"{scales.name} has shape {list(scales.shape)}, expected {[out, inputs // group_size, 1]}, "
            f"a scale for each row and {group_size} inputs"
        )
    return found
