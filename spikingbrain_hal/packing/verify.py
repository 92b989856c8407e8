"""A packed checkpoint read again and compared, bit for bit, with what its source implies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import torch

from ..checkpoint import Stored, weight_map
from ..checkpoint.folder import CONFIG, INDEX, read_object
from ..checkpoint.tensors import content_of
from .codes import code_blocks
from .manifest import Manifest, read_shard
from .pack import Progress, packing_entry
from .shard import block_bytes, source_bytes
from .source import Copied, Linear, PackingError, open_source


class Difference(PackingError):
    """A packed checkpoint is not what its source implies, or not what was written."""


def verify(src: str | Path, dst: str | Path, progress: Progress = lambda name, done, total: None) -> int:
    """Reads every tensor of a packed checkpoint and compares it with what the source implies.

    Args:
        src: The checkpoint that was packed.
        dst: The packed one, finished.
        progress: Is told how far it is.

    Returns:
        How many tensors were compared.

    Raises:
        Difference: A tensor differs, is missing or too many.
        CheckpointError: A folder is not finished, damaged, or of another kind.
    """
    src, dst = Path(src), Path(dst)
    manifest = _finished(dst)
    source = open_source(src, manifest.group_size, manifest.down_proj)
    if source.kind != manifest.kind:
        raise PackingError(f"{dst} was packed from a checkpoint of kind {manifest.kind!r}, {src} is {source.kind!r}")
    stored = _stored(dst, manifest)
    total, done, count = sum(map(source_bytes, source.parts)), 0, 0

    def advance(name: str, size: int) -> None:
        nonlocal done
        done += size
        progress(name, done, total)

    for part in source.parts:
        for name in part.names:
            if name not in stored:
                raise Difference(f"{dst} lacks {name}, which {src} implies")
        packed = [stored.pop(name) for name in part.names]
        if isinstance(part, Copied):
            _compare_copy(part, packed[0], advance)
        else:
            _compare_linear(part, packed[0], packed[1], advance)
        count += len(part.names)
    if stored:
        raise Difference(f"{dst} holds {min(stored)}, which {src} does not imply")
    config = read_object(dst / CONFIG)
    if config != {**source.config, "packing": packing_entry(manifest, source.config)}:
        raise Difference(f"{dst / CONFIG} is not that of {src} with the description of the packing")
    return count


def verify_checksums(dst: str | Path, progress: Progress = lambda name, done, total: None) -> int:
    """Reads every tensor of a packed checkpoint and compares it with the SHA-256 recorded when it was written.

    Args:
        dst: The packed checkpoint, finished.
        progress: Is told how far it is.

    Returns:
        How many tensors were compared.

    Raises:
        Difference: A tensor differs, is missing or too many.
        CheckpointError: A folder is not finished, damaged, or of another kind.
    """
    dst = Path(dst)
    manifest = _finished(dst)
    stored = _stored(dst, manifest)
    total, done = sum(tensor.nbytes for tensor in stored.values()), 0
    for records in manifest.shards.values():
        for name, record in records.items():
            digest = hashlib.sha256()
            for block in stored[name].bytes_in_blocks():
                digest.update(block)
                done += len(block)
                progress(name, done, total)
            if digest.hexdigest() != record["sha256"]:
                raise _differs(stored[name], "its checksum")
    return len(stored)


def _finished(dst: Path) -> Manifest:
    manifest = Manifest.read(dst)
    if not manifest.finished:
        raise PackingError(f"{dst} is not finished; run sbhal pack with the same arguments to go on")
    return manifest


def _stored(dst: Path, manifest: Manifest) -> dict[str, Stored]:
    """The tensors of all files, which must be those that were recorded and those that the index names."""
    found: dict[str, Stored] = {}
    for name, records in manifest.shards.items():
        found |= read_shard(dst / name, records)
    if weight_map(dst / INDEX) != {name: tensor.path for name, tensor in found.items()}:
        raise Difference(f"{dst / INDEX} does not name the tensors that are there")
    return found


def _differs(tensor: Stored, what: str) -> Difference:
    return Difference(
        f"{tensor.path}: {tensor.name} differs from {what}; remove the file and run sbhal pack again to make it anew"
    )


def _compare_copy(part: Copied, packed: Stored, advance: Callable[[str, int], None]) -> None:
    if (packed.dtype, packed.shape) != (part.tensor.dtype, part.tensor.shape):
        raise _differs(packed, "its source in dtype or shape")
    for given, found in zip_longest(part.tensor.bytes_in_blocks(), packed.bytes_in_blocks()):
        if given != found:
            raise _differs(packed, "its source")
        advance(part.name, len(given))


def _compare_linear(part: Linear, codes: Stored, scales: Stored, advance: Callable[[str, int], None]) -> None:
    groups = (part.shape[0], part.shape[1] // part.group_size)
    if codes.shape != part.shape or codes.dtype not in (torch.int8, torch.int16):
        raise _differs(codes, "its source in dtype or shape")
    if (scales.shape, scales.dtype) != (groups, torch.float32):
        raise _differs(scales, "its source in dtype or shape")
    found_codes, found_scales = codes.whole(), content_of(scales.whole())
    pitch = scales.shape[1] * scales.dtype.itemsize
    for first, expected, their_scales in code_blocks(part):
        last = first + len(expected)
        if not expected.equal(found_codes[first:last].to(expected.dtype)):
            raise _differs(codes, f"what {part.weight.name} implies, in rows {first} to {last - 1}")
        if content_of(their_scales) != found_scales[first * pitch : last * pitch]:
            raise _differs(scales, f"what {part.weight.name} implies, in rows {first} to {last - 1}")
        advance(part.name, block_bytes(part, first, len(expected)))
