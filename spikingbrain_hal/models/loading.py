"""How a checkpoint is found, recognised and read: safetensors alone, plain or W8ASpike, and never its code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from ..checkpoint import CheckpointError, Stored, read_config, read_tensors
from ..checkpoint.beside import PATTERNS
from ..checkpoint.folder import CONFIG, read_object, require_layers
from ..nn import encode_weight

SCALES = ".weight_quantizer.scales"
CODES = ".codes"
PREFIX = "model."
GENERATION = "generation_config.json"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def load(read: Callable[..., Any], model_class: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
    """Loads a checkpoint through transformers.

    Args:
        read: The ``from_pretrained`` of transformers.
        model_class: The class of the model.
        name: A folder, a name on the hub, or None with a state_dict.
        *args: Passed on.
        **kwargs: Passed on, but for ``trust_remote_code``.

    Returns:
        What ``read`` returns.

    Raises:
        CheckpointError: The checkpoint is missing, has no safetensors, is damaged, or is of another model.
    """
    if name is None or kwargs.get("state_dict") is not None:
        return read(name, *args, **kwargs)
    folder = checkpoint_folder(name, kwargs) / str(kwargs.pop("subfolder", None) or "")
    config, tensors, kwargs = _open(folder, model_class.config_class, kwargs)
    kwargs |= {"trust_remote_code": False, "use_safetensors": True}
    if not kwargs.get("ignore_mismatched_sizes"):
        require_fit(folder, model_class, config, tensors)
    released = any(tensor.endswith(SCALES) for tensor in tensors)
    if released:
        held = dict(integer_tensors(tensors, config.spike_down_proj))
        config.int8_projections = [n.removesuffix(CODES) for n, t in held.items() if t.dtype == torch.int8]
        loaded = read(None, *args, config=config, state_dict=held, **kwargs)
    else:
        packed = (tensor for tensor in tensors.values() if tensor.name.endswith(CODES))
        config.int8_projections = [tensor.name.removesuffix(CODES) for tensor in packed if tensor.dtype == torch.int8]
        loaded = read(str(folder), *args, config=config, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    del model.config.int8_projections
    model.config.name_or_path = model.name_or_path = str(name)
    if released and model.can_generate() and (folder / GENERATION).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return loaded


def checkpoint_folder(name: Any, hub: Mapping[str, Any] | None = None) -> Path:
    """The folder of a checkpoint; fetched from the hub if there is none of that name, without pickles and code.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        hub: Arguments of ``from_pretrained``; those that say how to fetch are used.

    Raises:
        CheckpointError: It is neither, or cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file, expected the folder of a checkpoint or a name on the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    wanted = {key: value for key, value in (hub or {}).items() if key in HUB_ARGUMENTS and value is not None}
    try:
        validate_repo_id(str(name))
        return Path(snapshot_download(str(name), allow_patterns=["*.safetensors", *PATTERNS], **wanted))
    except HFValidationError:
        raise CheckpointError(f"{name} is no folder, and no name that the hub could have") from None
    except Exception as error:  # of the network, by names that differ from version to version
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{name} is no folder, and cannot be had from the hub: {first}") from error


def open_checkpoint(folder: Path, model_class: Any) -> tuple[PretrainedConfig, dict[str, Stored]]:
    """The configuration of a checkpoint, and its tensors, of which only the headers are read.

    Args:
        folder: The folder of the checkpoint.
        model_class: The class of the model.

    Raises:
        CheckpointError: It has no safetensors, is damaged, or is of another model.
    """
    config, tensors, _ = _open(folder, model_class.config_class, {})
    require_fit(folder, model_class, config, tensors)
    return config, tensors


def _open(
    folder: Path, config_class: Any, kwargs: dict[str, Any]
) -> tuple[PretrainedConfig, dict[str, Stored], dict[str, Any]]:
    """As :func:`open_checkpoint`, with the arguments that are not the configuration's."""
    written = read_config(folder)
    tensors = read_tensors(folder)
    require_layers(folder, written, tensors)
    if (folder / "custom_generate").exists():
        raise CheckpointError(f"{folder} has code to generate with, custom_generate; it is never run here: remove it")
    if (folder / GENERATION).exists():
        read_object(folder / GENERATION)
    kept = {key: value for key, value in kwargs.items() if key in ("dtype", "torch_dtype")}  # no matter of the file
    kwargs = {key: value for key, value in kwargs.items() if key not in kept}
    config = kwargs.pop("config", None)
    if not isinstance(config, PretrainedConfig):
        try:
            config, kwargs = config_class.from_pretrained(config or str(folder), return_unused_kwargs=True, **kwargs)
        except Exception as error:  # whatever transformers meets in a file that nothing describes
            told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder / CONFIG} is not the configuration of a model: {told}") from error
    config = copy.deepcopy(config)
    if any(name.endswith(SCALES) for name in tensors):
        config.w8aspike = True
        config.quant_weight_group_size = group_size(tensors)
    return config, tensors, kwargs | kept


def require_fit(folder: Path, model_class: Any, config: PretrainedConfig, tensors: Mapping[str, Stored]) -> None:
    """Compares the tensors of a checkpoint with those of the model that its configuration implies.

    Tensors that the model does not have, or that it can initialise itself, are left for transformers to report.

    Raises:
        CheckpointError: A shape differs, integer weights are missing or too many, or there can be no such model.
    """
    try:
        with torch.device("meta"):
            state = model_class(copy.deepcopy(config)).state_dict()
    except Exception as error:  # of whatever a size that makes no sense breaks first
        raise CheckpointError(f"{folder / CONFIG} makes no model: {type(error).__name__}: {error}") from error
    implied = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in state.items()}
    renamed = _renamed(tensors, config.spike_down_proj)
    held = {renamed.get(name, name).removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    for name, tensor in held.items():
        scales = name.endswith(".scales") and tensor.name.endswith(SCALES)
        shape = (*tensor.shape[:1], math.prod(tensor.shape[1:])) if scales else tensor.shape
        if shape != implied.get(name, shape):
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} has shape {list(tensor.shape)}, {CONFIG} implies {list(implied[name])}"
            )
    integers = [{name for name in names if name.endswith(CODES)} for names in (implied, held)]
    if wrong := sorted(integers[0] ^ integers[1]):
        raise CheckpointError(
            f"{folder}: {wrong[0]} is among the integer weights of {CONFIG} or of the tensors, but not of both"
        )


def _renamed(tensors: Mapping[str, Stored], spike_down_proj: bool) -> dict[str, str]:
    """The names that weights and scales of W8ASpike layers have in a model."""
    layers = (name.removesuffix(SCALES) for name in tensors if name.endswith(SCALES))
    found: dict[str, str] = {}
    for layer in layers:
        if spike_down_proj or not layer.endswith(".down_proj"):
            found |= {layer + ".weight": layer + CODES, layer + SCALES: layer + ".scales"}
    return found


def group_size(tensors: Mapping[str, Stored]) -> int:
    """Inputs that share a scale in a W8ASpike checkpoint, from the shapes of its tensors.

    Raises:
        CheckpointError: Scales have no weight of a shape that they divide.
    """
    scales = next(tensor for name, tensor in tensors.items() if name.endswith(SCALES))
    weight = tensors.get(scales.name.removesuffix(SCALES) + ".weight")
    if weight is None or len(weight.shape) != 2 or len(scales.shape) < 2 or not all(weight.shape + scales.shape):
        shape = None if weight is None else list(weight.shape)
        raise CheckpointError(
            f"{scales.path}: {scales.name} is {list(scales.shape)} and its weight {shape}, expected "
            "[out, in / group_size, 1] and [out, in]"
        )
    return weight.shape[1] // scales.shape[1]


def integer_tensors(tensors: Mapping[str, Stored], spike_down_proj: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a W8ASpike checkpoint in our names, one at a time.

    ``x.weight`` and ``x.weight_quantizer.scales`` become ``x.codes``, the integers ``round(weight / scale)``, and
    ``x.scales``. The down projections stay weights as in the released code, unless they are to read spikes too.

    Args:
        tensors: Where each tensor lies.
        spike_down_proj: Encode the down projections.

    Yields:
        Names and tensors.

    Raises:
        CheckpointError: Scales do not fit their weight.
    """
    renamed = _renamed(tensors, spike_down_proj)
    for name, tensor in tensors.items():
        if name.endswith(SCALES):
            continue
        if name not in renamed:
            yield name, tensor.whole()
            continue
        layer = name.removesuffix(".weight")
        scales = tensors[layer + SCALES].whole().flatten(1).float()
        try:
            codes = encode_weight(tensor.whole(), scales)
        except ValueError as error:
            raise CheckpointError(f"{tensor.path}: {name}: {error}") from None
        narrow = codes.to(torch.int8)
        yield renamed[name], narrow if torch.equal(narrow, codes) else codes
        yield renamed[layer + SCALES], scales
