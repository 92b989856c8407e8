"""The files of a checkpoint's folder: its configuration, and which file holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as short
from typing import Any

from ..untrusted import is_inside, parse_json, read_bytes
from .tensors import CheckpointError, Stored, read_header

MODEL_TYPE = "gla_swa"
CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONVERT = "python -m spikingbrain_hal.models.convert"
LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")
LARGEST_TEXT = 100_000_000
CODE = ("auto_map", "custom_pipelines")  # keys by which a file of settings names code beside it


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        CheckpointError: There is no such file, or it holds something else.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}, expected the folder of a checkpoint")
    try:
        content = parse_json(read_bytes(path, LARGEST_TEXT), path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {short(content)}, expected an object")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a ``gla_swa`` checkpoint, but for the keys that name code.

    Raises:
        CheckpointError: There is none, or it is of another model or asks for what is not served.
    """
    path = folder / CONFIG
    config = without_code(read_object(path))
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path}: model_type is {short(config.get('model_type'))}, expected {MODEL_TYPE!r}; architectures "
            f"{short(config.get('architectures'))} are not served here, and code that comes with a checkpoint is "
            "never run"
        )
    for key, value in config.items():
        if "attn_implementation" in key and "/" in str(value):
            raise CheckpointError(f"{path}: {key} is {short(value)}, which names code on the hub; none is run here")
        if key in ("transformers_weights", "quantization_config") and value is not None:
            raise CheckpointError(f"{path}: {key} is {short(value)}, which is not served here, expected none")
    return config


def without_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a model, a tokenizer or of generation, but for the keys that name code."""
    return {key: value for key, value in settings.items() if key not in CODE}


def require_layers(folder: Path, config: dict[str, Any], tensors: Iterable[str]) -> int:
    """How many layers a configuration promises, which must be those that the tensors are named for.

    Raises:
        CheckpointError: They are more or fewer, or it is no such number.
    """
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or layers < 1:
        raise CheckpointError(f"{folder / CONFIG}: num_hidden_layers is {short(layers)}, expected how many layers")
    held = 1 + max((int(found[1]) for name in tensors if (found := LAYER.search(name))), default=-1)
    if held != layers:
        raise CheckpointError(
            f"{folder}: num_hidden_layers is {layers}, and there are tensors of {held} layers; is a file missing?"
        )
    for key in ("attn_layers", "full_attn_layers", "dense_layers"):
        chosen = config.get(key) or []
        if not isinstance(chosen, list) or not all(type(n) is int and 0 <= n < layers for n in chosen):
            raise CheckpointError(
                f"{folder / CONFIG}: {key} is {short(chosen)}, expected numbers of layers, 0 to {layers - 1}"
            )
    return layers


def weight_map(index: Path) -> dict[str, Path]:
    """Which file holds each tensor, as an index says it: files beside the index, whatever they may be links to.

    Raises:
        CheckpointError: It is no index, or names what could lie elsewhere.
    """
    content = read_object(index)
    found, about = content.get("weight_map"), content.get("metadata")
    if not isinstance(about, dict):
        raise CheckpointError(f"{index}: metadata is {short(about)}, expected an object")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index}: weight_map is {short(found)}, expected the file of each tensor")
    for tensor, name in found.items():
        if not is_inside(name) or "/" in name:
            raise CheckpointError(
                f"{index}: {short(tensor)} is said to be in {short(name)}, expected the name of a file beside it"
            )
    return {tensor: index.parent / name for tensor, name in found.items()}


def read_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint, by the headers of its files, in the order of files and places.

    Raises:
        CheckpointError: It has no safetensors, or some are missing, cut off, or not what the index says.
    """
    index, single = folder / INDEX, folder / SINGLE
    promised = weight_map(index) if index.is_file() and not single.is_file() else {}
    if not promised and not single.is_file():
        raise CheckpointError(_without_safetensors(folder))
    found: dict[str, Stored] = {}
    for path in sorted(set(promised.values())) or [single]:
        found |= {name: tensor for name, tensor in read_header(path).items() if promised.get(name, path) == path}
    absent = sorted(promised.keys() - found.keys())
    if absent:
        raise CheckpointError(f"{promised[absent[0]]} lacks {short(absent[0])}, which {INDEX} says it holds")
    return found


def _without_safetensors(folder: Path) -> str:
    if shards := sorted(folder.glob("*.safetensors")):
        return f"{folder} has {shards[0].name}, but neither {SINGLE} nor {INDEX}, which says what belongs to it"
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
    if not pickles:
        return f"{folder} holds no safetensors, expected {SINGLE} or {INDEX}"
    return (
        f"{folder} holds {pickles[0].name} and no safetensors. A pickle (*.bin, *.pt) can run any code while it is "
        f"read, so it is never loaded here. If you trust where it comes from, convert it to safetensors first: "
        f"{CONVERT} {folder} NEW_FOLDER"
    )
