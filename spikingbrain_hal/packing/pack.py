"""A checkpoint rewritten in the packed format, one file at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..checkpoint import CheckpointError
from ..checkpoint.beside import beside_weights
from ..checkpoint.folder import CONFIG, INDEX
from ..ops.linear.spike_linear import GROUP_SIZES
from .manifest import FORMAT_VERSION, MANIFEST, UNFINISHED, Manifest, publish, read_shard, write_atomically
from .shard import Part, ShardWriter, divide, part_bytes, source_bytes
from .source import PROJECTIONS, PackingError, Source, open_source

GROUP_SIZE = 128
SHARD_BYTES = 2_000_000_000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[str, int, int], None]
"""Is told a tensor's name, how many bytes of the source are done, and of how many."""


def pack(
    src: str | Path,
    dst: str | Path,
    group_size: int = GROUP_SIZE,
    down_proj: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda name, done, total: None,
) -> Path:
    """Packs a checkpoint: the projections as integers and scales, all else as it is, but for code and what names it.

    ``<linear>.weight`` becomes ``<linear>.codes``, int8 or where that is too narrow int16, [out, in], and
    ``<linear>.scales``, float32 [out, in / group_size]; the low-rank gate of a plain checkpoint becomes one
    projection, ``gk_proj``. Needs memory for one projection, whatever the size of the checkpoint. A run that was
    stopped is taken up again at the first file that it had not finished.

    Args:
        src: Folder of a ``gla_swa`` checkpoint of safetensors, plain or W8ASpike.
        dst: Folder to write; new, empty, or left by a run with the same arguments.
        group_size: Inputs that share a scale: 32, 64 or 128.
        down_proj: Pack the down projections too.
        shard_bytes: Bound of the files' size, but for a tensor that is larger by itself.
        progress: Is told how far it is.

    Returns:
        dst.

    Raises:
        CheckpointError: The source is not whole or of another kind.
        PackingError: An argument is wrong, dst is not ours to write, or its disk is full.
        OSError: A file cannot be read or written.

    Source: SpikingBrain technical report, eqs. 19-23.
    """
    src, dst = Path(src), Path(dst)
    if group_size not in GROUP_SIZES:
        raise PackingError(f"pack: group_size is {group_size}, expected one of {GROUP_SIZES}")
    if shard_bytes < 1:
        raise PackingError(f"pack: shard_bytes is {shard_bytes}, expected a positive number")
    _require_apart(src, dst)
    source = open_source(src, group_size, down_proj)
    shards = named_shards(source, shard_bytes)
    with _own(dst):
        manifest = _begin(dst, Manifest.of(source, group_size, down_proj, shard_bytes))
        _forget_lost(dst, manifest)
        left = {name: parts for name, parts in shards.items() if name not in manifest.shards}
        _require_room(dst, left)
        total = sum(map(source_bytes, source.parts))
        done = total - sum(source_bytes(part) for parts in left.values() for part in parts)

        def advance(name: str, size: int) -> None:
            nonlocal done
            done += size
            progress(name, done, total)

        progress("", done, total)
        with _told_of_a_full_disk(dst, left):
            for name, parts in left.items():
                records = ShardWriter(dst / (name + UNFINISHED), parts).write(advance)
                publish(dst / (name + UNFINISHED), dst / name)
                manifest.shards[name] = records
                manifest.write(dst)
            _finish(source, dst, manifest)
    return dst


def named_shards(source: Source, shard_bytes: int) -> dict[str, list[Part]]:
    """Which file of the packed checkpoint holds which parts of the source."""
    shards = divide(source.parts, shard_bytes)
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": parts for i, parts in enumerate(shards, 1)}


def packing_entry(manifest: Manifest, config: dict[str, object]) -> dict[str, object]:
    """What a packed checkpoint's config.json says of it, under ``packing``."""
    return {
        "format_version": FORMAT_VERSION,
        "source": manifest.kind,
        "group_size": manifest.group_size,
        "spike_k": config.get("spike_k", 3.0),
        "projections": [*PROJECTIONS, *(["down_proj"] if manifest.down_proj else [])],
    }


def _require_apart(src: Path, dst: Path) -> None:
    inner, outer = dst.resolve(), src.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise PackingError(f"DST, {dst}, and SRC, {src}, lie one within the other; expected folders apart")


@contextmanager
def _own(dst: Path) -> Iterator[None]:
    """Makes the folder, or makes sure that it is ours and that nobody else writes to it."""
    if dst.exists() and not dst.is_dir():
        raise PackingError(f"DST is {dst}, a file; expected a folder")
    dst.mkdir(parents=True, exist_ok=True)
    foreign = sorted(f.name for f in dst.iterdir() if f.name != MANIFEST + UNFINISHED)
    if foreign and not (dst / MANIFEST).exists():
        raise PackingError(f"DST, {dst}, holds {foreign[0]} and no {MANIFEST}; expected a new or an empty folder")
    folder = os.open(dst, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PackingError(f"DST, {dst}, is being written by another run") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


def _begin(dst: Path, manifest: Manifest) -> Manifest:
    if not (dst / MANIFEST).exists():
        manifest.write(dst)
        return manifest
    begun = Manifest.read(dst)
    begun.require_same(manifest, dst)
    return begun


def _forget_lost(dst: Path, manifest: Manifest) -> None:
    """What was recorded but is no longer there, or no longer whole, is made anew."""
    for name, records in list(manifest.shards.items()):
        try:
            read_shard(dst / name, records)
        except CheckpointError:
            del manifest.shards[name]
            manifest.finished = False


def _require_room(dst: Path, left: dict[str, list[Part]]) -> None:
    _remove_unfinished(dst, left)
    least = sum(part_bytes(part, torch.int8) for parts in left.values() for part in parts)
    free = shutil.disk_usage(dst).free
    if least > free:
        raise PackingError(f"DST, {dst}, has {free / 1e9:.2f} GB free, and at least {least / 1e9:.2f} GB are to come")


def _remove_unfinished(dst: Path, left: dict[str, list[Part]]) -> None:
    for name in left:
        (dst / (name + UNFINISHED)).unlink(missing_ok=True)


@contextmanager
def _told_of_a_full_disk(dst: Path, left: dict[str, list[Part]]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        _remove_unfinished(dst, left)
        raise PackingError(
            f"DST, {dst}: {os.strerror(error.errno)}. The files that were finished are kept; make room and run the "
            "same command again"
        ) from error


def _finish(source: Source, dst: Path, manifest: Manifest) -> None:
    """Writes what is not tensors, the configuration last but for the record that all is done."""
    weight_map = {tensor: name for name, records in manifest.shards.items() for tensor in records}
    size = sum((dst / name).stat().st_size for name in manifest.shards)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_atomically(dst / INDEX, json.dumps(index, indent=1).encode())
    for name, content in beside_weights(source.folder):
        (dst / name).parent.mkdir(exist_ok=True)
        write_atomically(dst / name, content)
    config = {**source.config, "packing": packing_entry(manifest, source.config)}
    write_atomically(dst / CONFIG, json.dumps(config, indent=2).encode())
    if not manifest.finished:
        manifest.finished = True
        manifest.write(dst)
