"""How a checkpoint is found, recognised and read: safetensors alone, plain or W8ASpike."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from ..nn import encode_weight

SCALES = ".weight_quantizer.scales"
CODES = ".codes"
CONVERT = "python -m spikingbrain_hal.models.convert"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def load(read: Callable[..., Any], model_class: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
    """Loads a checkpoint through transformers.

    Args:
        read: The ``from_pretrained`` of transformers.
        model_class: The class of the model.
        name: A folder, a name on the hub, or None with a state_dict.
        *args: Passed on.
        **kwargs: Passed on.

    Returns:
        What ``read`` returns.

    Raises:
        ValueError: The checkpoint has no safetensors.
    """
    if name is None or kwargs.get("state_dict") is not None:
        return read(name, *args, **kwargs)
    folder = _folder(name, kwargs)
    files = tensor_files(folder)
    released = any(tensor.endswith(SCALES) for tensor in files)
    if not released and not any(tensor.endswith(CODES) for tensor in files):
        return read(str(folder), *args, **{**kwargs, "use_safetensors": True})
    config = kwargs.pop("config", None)
    if not isinstance(config, PretrainedConfig):
        config, kwargs = model_class.config_class.from_pretrained(
            config or str(folder), return_unused_kwargs=True, **kwargs
        )
    config = checkpoint_config(config, files)
    if released:
        tensors = dict(integer_tensors(files, config.spike_down_proj))
        config.int8_projections = [n.removesuffix(CODES) for n, t in tensors.items() if t.dtype == torch.int8]
        loaded = read(None, *args, config=config, state_dict=tensors, **kwargs)
    else:
        config.int8_projections = list(_stored_as_int8(files))
        loaded = read(str(folder), *args, config=config, **{**kwargs, "use_safetensors": True})
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    del model.config.int8_projections
    model.config.name_or_path = model.name_or_path = str(name)
    if released and model.can_generate() and (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return loaded


def checkpoint_config(config: PretrainedConfig, files: dict[str, Path]) -> PretrainedConfig:
    """A configuration completed with what only the tensors tell: whether they are those of a W8ASpike checkpoint.

    Args:
        config: From the checkpoint's config.json.
        files: Which file holds each tensor.

    Returns:
        A copy.
    """
    config = copy.deepcopy(config)
    if any(tensor.endswith(SCALES) for tensor in files):
        config.w8aspike = True
        config.quant_weight_group_size = group_size(files)
    return config


def _folder(name: Any, kwargs: dict[str, Any]) -> Path:
    """The folder of a checkpoint; fetches it from the hub if there is none of that name, without its pickles."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        wanted = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        folder = Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors"], **wanted))
    return folder / str(kwargs.get("subfolder", ""))


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor of a checkpoint.

    Args:
        folder: The folder of the checkpoint.

    Raises:
        ValueError: It has no safetensors.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        found = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in found.items()}
    single = folder / "model.safetensors"
    if single.exists():
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
    raise ValueError(
        f"from_pretrained: {folder} has no model.safetensors. A pickle (*.bin, *.pt) can run any code while it is "
        f"read, so it is never loaded here. If you trust where it comes from, convert it once: "
        f"{CONVERT} {folder} NEW_FOLDER"
    )


def _stored_as_int8(files: dict[str, Path]) -> Iterator[str]:
    for path in sorted(set(files.values())):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.endswith(CODES) and file.get_slice(name).get_dtype() == "I8":
                    yield name.removesuffix(CODES)


def group_size(files: dict[str, Path]) -> int:
    """Inputs that share a scale in a W8ASpike checkpoint, from the shapes of its tensors."""
    scales = next(name for name in files if name.endswith(SCALES))
    shapes = []
    for name in (scales.removesuffix(SCALES) + ".weight", scales):
        with safe_open(files[name], "pt") as file:
            shapes.append(file.get_slice(name).get_shape())
    return int(shapes[0][1] // shapes[1][1])


def integer_tensors(files: dict[str, Path], spike_down_proj: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a W8ASpike checkpoint in our names, file by file.

    ``x.weight`` and ``x.weight_quantizer.scales`` become ``x.codes``, the integers ``round(weight / scale)``, and
    ``x.scales``. The down projections stay weights as in the released code, unless they are to read spikes too.

    Args:
        files: Which file holds each tensor.
        spike_down_proj: Encode the down projections.

    Yields:
        Names and tensors.
    """
    encoded = {
        name.removesuffix(SCALES)
        for name in files
        if name.endswith(SCALES) and (spike_down_proj or not name.endswith(".down_proj" + SCALES))
    }
    for path in sorted(set(files.values())):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                layer = name.removesuffix(".weight")
                if name.endswith(SCALES):
                    continue
                if layer == name or layer not in encoded:
                    yield name, file.get_tensor(name)
                    continue
                with safe_open(files[layer + SCALES], "pt") as other:
                    scales = other.get_tensor(layer + SCALES).flatten(1).float()
                codes = encode_weight(file.get_tensor(name), scales)
                narrow = codes.to(torch.int8)
                yield layer + CODES, narrow if torch.equal(narrow, codes) else codes
                yield layer + ".scales", scales
