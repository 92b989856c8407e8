"""Headers, indexes and records that no writer wrote: refused in a sentence, by every reader of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packable import GROUP, plain_tensors, read_folder, write_checkpoint

from spikingbrain_hal import packing
from spikingbrain_hal.checkpoint import CheckpointError, read_tensors, weight_map
from spikingbrain_hal.checkpoint.folder import INDEX
from spikingbrain_hal.checkpoint.tensors import read_header
from spikingbrain_hal.packing.manifest import MANIFEST
from spikingbrain_hal.untrusted import is_inside, parse_json

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def file_of(path: Path, header: Any, body: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def one(**changes: Any) -> dict[str, Any]:
    return {"a": ONE["a"] | changes}


def test_a_right_header_is_read(tmp_path: Path) -> None:
    (found,) = read_header(file_of(tmp_path / "f", ONE | {"__metadata__": {"format": "pt"}})).values()
    assert (found.name, found.dtype, found.shape) == ("a", torch.float32, (2,))
    assert torch.equal(found.whole(), torch.zeros(2))
    scalar = file_of(tmp_path / "s", one(shape=[], data_offsets=[0, 4]), bytes(4))
    assert read_header(scalar)["a"].whole().shape == ()
    empty = file_of(tmp_path / "e", one(shape=[3, 0], data_offsets=[0, 0]), b"")
    assert read_header(empty)["a"].whole().shape == (3, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 5000 + b"]" * 5000, "it is no object"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "deep"),
        (b"{}" + b"\xff", "is not JSON"),
        (b" {}", "it is no object"),
        (b"[]", "it is no object"),
        (b"{ ", "is not JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (json.dumps({"a": 10**400}).encode(), "a whole number of 401 digits"),
        ({"__metadata__": [1]}, "__metadata__ is not text by name"),
        ({"__metadata__": {"format": 1}}, "__metadata__ is not text by name"),
        ({"a": None}, "expected dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32"}}, "expected dtype, shape and data_offsets"),
        (one(dtype="F33"), "has dtype 'F33', expected one of F64"),
        (one(dtype=["F32"]), "has dtype "),
        (one(shape=2), "has shape 2, expected whole numbers from 0 on"),
        (one(shape=[-2]), r"has shape \[-2\]"),
        (one(shape=[2.0]), r"has shape \[2.0\]"),
        (one(shape=["2"]), r"has shape \['2'\]"),
        (one(shape=[True, 2]), r"has shape \[True, 2\]"),
        (one(shape=[-1, -2]), r"has shape \[-1, -2\]"),
        (one(shape=[1 << 62, 1 << 62]), "elements"),
        (one(shape=[0, 1 << 62], data_offsets=[0, 0]), "elements"),
        (one(shape=[3]), "which its shape and its neighbours contradict"),
        (one(data_offsets=[0]), "has 1 data_offsets, expected two"),
        (one(data_offsets=[8, 0]), "which its shape and its neighbours contradict"),
        (one(data_offsets=[-8, 0]), r"has data_offsets \[-8, 0\]"),
        (one(data_offsets=[0, 1 << 70]), "which its shape and its neighbours contradict"),
        (one(data_offsets=None), "has data_offsets None"),
        (ONE | {"b": ONE["a"]}, "which its shape and its neighbours contradict"),
        ({}, "has 18 bytes, its header promises 10"),
    ],
)
def test_a_header_that_is_none_is_refused(header: Any, message: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_header(path)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(8))
    with pytest.raises(CheckpointError, match="no safetensors file, or was cut off within its header"):
        read_header(path)


OUTSIDE = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "..",
    ".",
    "",
    "a//b",
    "./a",
    "a\\b",
    "a\nb",
    "a\0b",
    "x" * 256,
    "ü" * 200,
]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 7, ["x"]])
def test_a_name_that_could_lie_elsewhere_is_refused(name: Any, tmp_path: Path) -> None:
    assert not is_inside(name)
    index = tmp_path / INDEX
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "x.safetensors", "b": name}}))
    with pytest.raises(CheckpointError, match=r"'b' is said to be in .*, expected the name of a file beside it"):
        weight_map(index)
    with pytest.raises(CheckpointError, match="expected the name of a file beside it"):
        read_tensors(tmp_path)


def test_it_is_the_name_that_is_judged(tmp_path: Path) -> None:
    """All files of the hub's cache are links to another folder."""
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16), 1)
    cache = tmp_path / "snapshots" / "1a2b"
    cache.mkdir(parents=True)
    for file in src.iterdir():
        (cache / file.name).symlink_to(f"../../src/{file.name}")
    packing.verify(cache, packing.pack(cache, tmp_path / "dst", group_size=GROUP))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", "[" * 9999, "\ud800"),
        *('{"weight_map": {"a": "b"}}', '{"metadata": 1, "weight_map": {"a": "b"}}'),
        *('{"metadata": {}}', '{"metadata": {}, "weight_map": []}', '{"metadata": {}, "weight_map": {}}'),
    ],
)
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=INDEX):
        read_tensors(tmp_path)


def test_a_projection_without_elements_is_refused(tmp_path: Path) -> None:
    for name, shape in (("q_proj", (0, 128)), ("k_proj", (32, 0)), ("gk_proj.0", (0, 128))):
        tensors = plain_tensors(1, torch.bfloat16)
        tensors[f"model.layers.0.attn.{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
        if name == "gk_proj.0":
            tensors["model.layers.0.attn.gk_proj.1.weight"] = torch.zeros((32, 0), dtype=torch.bfloat16)
        src = write_checkpoint(tmp_path / name, tensors, 1)
        with pytest.raises(CheckpointError, match="expected a matrix with elements"):
            packing.pack(src, tmp_path / "dst", group_size=GROUP)


def test_names_that_fall_together_are_refused(tmp_path: Path) -> None:
    extra = {"model.layers.0.attn.q_proj.codes": torch.zeros(1)}
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16) | extra, 1)
    with pytest.raises(CheckpointError, match=r"two of its tensors would be model\.layers\.0\.attn\.q_proj\.codes"):
        packing.pack(src, tmp_path / "dst", group_size=GROUP)


def test_json_that_others_would_read_otherwise_is_refused() -> None:
    assert parse_json('{"a": [1, 2.5, null]}', "it") == {"a": [1, 2.5, None]}
    for text in ('{"a": 1, "a": 2}', "1e999", "-Infinity", "[" * 65 + "]" * 65, "\ufeff{}", b"\xff\xfe{\0}\0"):
        with pytest.raises(ValueError, match=r"^it is not JSON: "):
            parse_json(text, "it")


# ---- anything, anywhere


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


ODD = [None, True, -1, 0, 1 << 40, 0.5, "", "x", "../x", "/x", [], [-1], {}, {"x": []}, "F32", [[]]]


def spoilt(value: Any, choose: random.Random) -> Any:
    """A value with something else in one of its places, or without it."""
    changed = json.loads(json.dumps(value))
    *path, last = choose.choice(list(places(changed)))
    holder = changed
    for key in path:
        holder = holder[key]
    if choose.random() < 0.3:
        del holder[last]
    else:
        holder[last] = choose.choice(ODD)
    return changed


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_is_packed_or_refused_in_a_sentence(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16), 1, shards=2)
    dst = packing.pack(src, tmp_path / "dst", group_size=GROUP)
    jsons = [src / "config.json", src / INDEX, dst / "config.json", dst / INDEX, dst / MANIFEST]
    headers = sorted([*src.glob("*.safetensors"), *dst.glob("*.safetensors")])
    for _ in range(40):
        path = choose.choice(jsons + headers)
        whole, before = path.read_bytes(), path.stat()
        if path in jsons:
            path.write_text(json.dumps(spoilt(json.loads(whole), choose)))
        else:
            length = int.from_bytes(whole[:8], "little")
            file_of(path, spoilt(json.loads(whole[8 : 8 + length]), choose), whole[8 + length :])
        for read in (
            lambda: packing.verify(src, dst),
            lambda: packing.verify_checksums(dst),
            lambda: packing.pack(src, dst, group_size=GROUP),
            lambda: packing.pack(src, tmp_path / "new", group_size=GROUP),
        ):
            with contextlib.suppress(CheckpointError):
                read()
        path.write_bytes(whole)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    packing.pack(src, dst, group_size=GROUP)
    packing.verify(src, dst)
    assert read_folder(dst)
