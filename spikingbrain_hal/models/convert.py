"""A pickle checkpoint rewritten as safetensors: ``python -m spikingbrain_hal.models.convert SRC DST``."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import CheckpointError, weight_map, without_code
from ..checkpoint.beside import beside_weights, left_behind
from ..checkpoint.folder import CONFIG, INDEX, SINGLE, read_object

RISK = """\
A pickle is a program: reading it can run any code with your rights. This command reads it with torch's restricted
unpickler, which accepts tensors and plain containers and refuses everything else; that is a filter, not a sandbox.
Convert only files whose origin you trust, and compare their checksums with those that the origin publishes."""


PICKLE_INDEX = "pytorch_model.bin.index.json"
TRAINING = ("training_args.*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*")


def _shards(source: Path) -> list[Path]:
    """The pickles that hold weights; never what a trainer keeps of its own beside them."""
    index = source / PICKLE_INDEX
    if index.is_file():
        found = sorted(set(weight_map(index).values()))
    else:
        patterns = ("pytorch_model*.bin", "*.bin", "*.pt")
        everything = ([p for p in sorted(source.glob(pattern)) if not _is_training(p)] for pattern in patterns)
        found = next((paths for paths in everything if paths), [])
    for path in found:
        if _is_training(path):
            raise CheckpointError(f"{index} names {path.name}, which holds the state of a training run, not weights")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
    return found


def _is_training(path: Path) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in TRAINING)


def _tensors(shard: Path) -> dict[str, Tensor]:
    loaded = _unpickled(shard)
    seen: set[int] = set()
    tensors = {}
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{shard} holds {name!r}, which is not a tensor by name; expected a state dict")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{shard}: {name} is no plain tensor, but {tensor.layout} on {tensor.device}")
        storage = tensor.untyped_storage()
        if tensor.nbytes > storage.nbytes():
            raise CheckpointError(f"{shard}: {name} repeats its elements, {list(tensor.shape)} of {storage.nbytes()} B")
        tensor = tensor.contiguous()
        tensors[name] = tensor.clone() if storage.data_ptr() in seen else tensor  # safetensors shares no storage
        seen.add(storage.data_ptr())
    return tensors


def _unpickled(shard: Path) -> dict[Any, Any]:
    try:
        loaded = torch.load(shard, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle breaks in as many ways as there are instructions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{shard} is no pickle of tensors and plain containers alone: {first}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{shard} holds a {type(loaded).__name__}, expected a state dict")
    return loaded


def convert_pickle(source: str | Path, target: str | Path, tell: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Rewrites a checkpoint of pickles as safetensors, one file at a time.

    Reading a pickle can run code. torch's restricted unpickler (``weights_only=True``) refuses what is not a tensor
    or a plain container, but convert only what you trust. Configuration, tokenizer, chat templates and licence are
    copied; code and what names it is not. All is written beside the target, which is there whole or not at all.

    Args:
        source: Folder with ``pytorch_model*.bin``, or other ``*.bin`` or ``*.pt`` state dicts.
        target: Folder to write, new or empty.
        tell: Is called with the name of each file as its turn comes.

    Returns:
        The files of tensors that were written.

    Raises:
        CheckpointError: source has no pickle, or one that is damaged or no state dict; or target holds something.
        OSError: A file cannot be read or written.
    """
    source, target = Path(source), Path(target)
    shards = _shards(source)
    if not shards:
        raise CheckpointError(f"convert_pickle: source is {source}, expected a folder with *.bin or *.pt of weights")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"convert_pickle: target is {target}, expected a folder that is empty or not there")
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n, _ in enumerate(shards, 1)]
    names = names if len(shards) > 1 else [SINGLE]
    with _replacing(target) as folder:
        written: dict[str, str] = {}
        total = 0
        for name, shard in zip(names, shards, strict=True):
            tell(shard.name)
            tensors = _tensors(shard)
            if twice := sorted(written.keys() & tensors.keys()):
                raise CheckpointError(f"{shard} holds {twice[0]}, which another file holds too")
            save_file(tensors, folder / name, {"format": "pt"})
            written |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(written.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        if (source / CONFIG).is_file():
            config = without_code(read_object(source / CONFIG))
            (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        for name, content in beside_weights(source):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return [target / name for name in names]


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end, or is gone if there is none."""
    target = target.resolve()
    folder = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(target)
    except BaseException:
        shutil.rmtree(folder)
        raise


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m spikingbrain_hal.models.convert``; exits with 2 where nothing was written."""
    parser = argparse.ArgumentParser("python -m spikingbrain_hal.models.convert", description=__doc__, epilog=RISK)
    parser.add_argument("source", type=Path, help="folder with pytorch_model*.bin")
    parser.add_argument("target", type=Path, help="folder to write, new or empty")
    given = parser.parse_args(arguments)
    print(RISK)
    try:
        convert_pickle(given.source, given.target, tell=lambda name: print(f"reading {name}", flush=True))
        if left := left_behind(given.source, _shards(given.source)):
            print(f"left behind: {', '.join(left)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
