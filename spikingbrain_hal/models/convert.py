"""A pickle checkpoint rewritten as safetensors: ``python -m spikingbrain_hal.models.convert SRC DST``."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RISK = """\
A pickle is a program: reading it can run any code with your rights. This command reads it with torch's restricted
unpickler, which accepts tensors and plain containers and refuses everything else; that is a filter, not a sandbox.
Convert only files whose origin you trust, and compare their checksums with those that the origin publishes."""


def _shards(source: Path) -> list[Path]:
    index = source / "pytorch_model.bin.index.json"
    if index.exists():
        return [source / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(source.glob("*.bin")) or sorted(source.glob("*.pt"))


def _tensors(shard: Path) -> dict[str, Tensor]:
    loaded = torch.load(shard, map_location="cpu", weights_only=True)
    wrong = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"convert_pickle: {shard} holds {wrong[0]!r}, which is not a tensor; expected a state dict")
    seen: set[int] = set()
    tensors = {}
    for name, tensor in loaded.items():
        place = tensor.untyped_storage().data_ptr()
        tensor = tensor.contiguous()
        tensors[name] = tensor.clone() if place in seen else tensor  # safetensors shares no storage
        seen.add(place)
    return tensors


def convert_pickle(source: str | Path, target: str | Path, tell: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Rewrites a checkpoint of pickles as safetensors, one file at a time.

    Reading a pickle can run code. torch's restricted unpickler (``weights_only=True``) refuses what is not a tensor
    or a plain container, but convert only what you trust. The configuration and the tokenizer are copied, code is
    not.

    Args:
        source: Folder with ``pytorch_model*.bin``, or other ``*.bin`` or ``*.pt`` state dicts.
        target: Folder to write, which may exist but must not hold safetensors.
        tell: Is called with the name of each file as its turn comes.

    Returns:
        The files of tensors that were written.

    Raises:
        ValueError: source has no pickle or one that is not a state dict, or target holds safetensors.
        pickle.UnpicklingError: A pickle holds more than tensors and plain containers.
    """
    source, target = Path(source), Path(target)
    shards = _shards(source)
    if not shards:
        raise ValueError(f"convert_pickle: source is {source}, expected a folder with *.bin or *.pt files")
    if any(target.glob("*.safetensors")):
        raise ValueError(f"convert_pickle: target is {target}, expected a folder without safetensors")
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        tell(shard.name)
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = _tensors(shard)
        unfinished = target / (name + ".unfinished")
        save_file(tensors, unfinished, {"format": "pt"})
        written.append(unfinished.rename(target / name))
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".bin.index.json"):
            shutil.copyfile(file, target / file.name)
    return written


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m spikingbrain_hal.models.convert``."""
    parser = argparse.ArgumentParser("python -m spikingbrain_hal.models.convert", description=__doc__, epilog=RISK)
    parser.add_argument("source", type=Path, help="folder with pytorch_model*.bin")
    parser.add_argument("target", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    print(RISK)
    convert_pickle(given.source, given.target, tell=lambda name: print(f"reading {name}", flush=True))


if __name__ == "__main__":
    main()
