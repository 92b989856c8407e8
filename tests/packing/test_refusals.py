"""What cannot be packed is refused with a reason, and nothing is lost; and the command line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packable import GROUP, plain_tensors, read_folder, w8aspike_tensors, write_checkpoint, write_file
from typer.testing import CliRunner, Result

from spikingbrain_hal import packing
from spikingbrain_hal.checkpoint import CheckpointError
from spikingbrain_hal.checkpoint.folder import INDEX
from spikingbrain_hal.cli.app import app

SHARD = 30_000


def pack(src: Path, dst: Path, **options: Any) -> Path:
    return packing.pack(src, dst, group_size=GROUP, shard_bytes=SHARD, **options)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "src", plain_tensors(2, torch.bfloat16), 2)


def edit_config(src: Path, **changes: Any) -> None:
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(src: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrites a checkpoint as one file with its tensors changed."""
    tensors = read_folder(src)
    change(tensors)
    for file in src.glob("model*"):
        file.unlink()
    write_file(src / "model.safetensors", tensors)


def only_pickles(src: Path) -> None:
    for file in src.glob("model*"):
        file.unlink()
    (src / "pytorch_model-00001-of-00002.bin").write_bytes(b"")


def second_shard(src: Path) -> Path:
    return src / "model-00002-of-00003.safetensors"


def prefix(src: Path, content: bytes) -> None:
    second_shard(src).write_bytes(content + second_shard(src).read_bytes()[len(content) :])


def header_without_gaps(src: Path) -> None:
    whole = second_shard(src).read_bytes()
    second_shard(src).write_bytes(whole.replace(b'"data_offsets": [0', b'"data_offsets": [2', 1))


GATE, Q = "model.layers.0.attn.gk_proj.1.weight", "model.layers.0.attn.q_proj.weight"
BAD_SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda s: shutil.rmtree(s), "SRC is .*, expected the folder of a checkpoint"),
    "no config": (lambda s: (s / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda s: (s / "config.json").write_text("{"), "config.json is not JSON"),
    "list as config": (lambda s: (s / "config.json").write_text("[]"), r"config\.json holds \[\], expected an object"),
    "other model": (lambda s: edit_config(s, model_type="llama"), "model_type is 'llama', expected 'gla_swa'"),
    "experts": (lambda s: edit_config(s, num_experts=16), "num_experts is 16"),
    "packed": (lambda s: edit_config(s, packing={}), "is packed already"),
    "no layers": (lambda s: edit_config(s, num_hidden_layers=None), "num_hidden_layers is None"),
    "more layers": (
        lambda s: edit_config(s, num_hidden_layers=3),
        "is 3, and there are tensors of 2 layers",
    ),
    "fewer layers": (
        lambda s: edit_config(s, num_hidden_layers=1),
        "is 1, and there are tensors of 2 layers",
    ),
    "missing shard": (lambda s: second_shard(s).unlink(), "model-00002-of-00003.safetensors is missing"),
    "truncated shard": (lambda s: os.truncate(second_shard(s), 9000), "has 9000 bytes, its header promises"),
    "truncated header": (lambda s: os.truncate(second_shard(s), 100), "cut off within its header"),
    "empty shard": (lambda s: os.truncate(second_shard(s), 0), "cut off within its header"),
    "longer shard": (lambda s: second_shard(s).open("ab").write(b"x"), "its header promises"),
    "not safetensors": (lambda s: prefix(s, b"PK\3\4 is zip"), "no safetensors file"),
    "broken header": (lambda s: prefix(s, second_shard(s).read_bytes()[:8] + b"{{"), "a header that is not"),
    "overlap": (header_without_gaps, "which its shape and its neighbours contradict"),
    "broken index": (
        lambda s: (s / INDEX).write_text("{}"),
        "metadata is None",
    ),
    "no index": (lambda s: (s / INDEX).unlink(), "which says what belongs to it"),
    "pickles": (only_pickles, r"convert it to safetensors first: python -m spikingbrain_hal\.models\.convert"),
    "nothing": (lambda s: [f.unlink() for f in s.glob("model*")], "holds no safetensors"),
    "half a gate": (lambda s: edit_tensors(s, lambda t: t.pop(GATE)), "gk_proj.1.weight is missing"),
    "lost tensor": (lambda s: edit_tensors(s, lambda t: t.pop(Q)), "layer 0 of 2 has no q_proj"),
    "a vector": (lambda s: edit_tensors(s, lambda t: t.update({Q: torch.ones(4)})), r"shape \[\[4\]\], expected a mat"),
    "integers": (lambda s: edit_tensors(s, lambda t: t.update({Q: t[Q].long()})), "torch.int64, expected a float"),
    "odd inputs": (lambda s: edit_tensors(s, lambda t: t.update({Q: t[Q][:, :60]})), "60 inputs, expected a multiple"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_source_that_is_not_whole_or_of_another_kind_is_refused(src: Path, tmp_path: Path, name: str) -> None:
    spoil, message = BAD_SOURCES[name]
    spoil(src)
    before = {f.name: f.read_bytes() for f in src.iterdir()} if src.exists() else {}
    with pytest.raises(CheckpointError, match=message):
        pack(src, tmp_path / "dst")
    assert not list(tmp_path.glob("dst/*.safetensors"))
    assert not before or {f.name: f.read_bytes() for f in src.iterdir()} == before


def test_a_weight_that_is_not_finite_is_refused_where_it_is_reached(src: Path, tmp_path: Path) -> None:
    edit_tensors(src, lambda t: t[Q].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*q_proj\.weight, from row 0: .* nan"):
        pack(src, tmp_path / "dst")
    assert not list(tmp_path.glob("dst/config.json"))


SCALES = "model.layers.1.mlp.up_proj.weight_quantizer.scales"
BAD_W8ASPIKE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "lost scales": (lambda t: t.pop(SCALES), "up_proj.weight_quantizer.scales is missing"),
    "other groups": (lambda t: t.update({SCALES: t[SCALES][:, :2]}), r"shape \[96, 2, 1\], expected \[96, 4, 1\]"),
    "huge integers": (lambda t: t[SCALES].mul_(1e-3), "weight / scales reaches .*, expected at most 512"),
}


@pytest.mark.parametrize("name", BAD_W8ASPIKE)
def test_a_w8aspike_source_with_wrong_scales_is_refused(tmp_path: Path, name: str) -> None:
    spoil, message = BAD_W8ASPIKE[name]
    tensors, _ = w8aspike_tensors(2, 194)
    spoil(tensors)
    with pytest.raises(CheckpointError, match=message):
        pack(write_checkpoint(tmp_path / "src", tensors, 2), tmp_path / "dst")


@pytest.mark.parametrize("place", ["src", "src/inner", "."])
def test_folders_one_within_the_other_are_refused(src: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(CheckpointError, match="lie one within the other"):
        pack(src, tmp_path / place)
    (tmp_path / "link").symlink_to(src)
    with pytest.raises(CheckpointError, match="lie one within the other"):
        pack(src, tmp_path / "link" / "inner")


def test_a_foreign_target_is_refused_and_left_alone(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    dst.write_text("a file")
    with pytest.raises(CheckpointError, match="a file; expected a folder"):
        pack(src, dst)
    dst.unlink()
    dst.mkdir()
    (dst / "thesis.part").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds thesis\.part and no packing\.json"):
        pack(src, dst)
    assert (dst / "thesis.part").read_text() == "mine"
    (dst / "packing.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no record of a packing"):
        pack(src, dst)
    (dst / "packing.json").write_text('{"format_version": 99}')
    with pytest.raises(CheckpointError, match="has format_version 99, expected 1"):
        pack(src, dst)


def test_a_run_with_other_options_or_another_source_does_not_go_on(src: Path, tmp_path: Path) -> None:
    dst = pack(src, tmp_path / "dst")
    before = {f.name: f.stat().st_mtime_ns for f in dst.iterdir()}
    with pytest.raises(CheckpointError, match="down_proj was False, now it is True"):
        pack(src, dst, down_proj=True)
    with pytest.raises(CheckpointError, match="shard_bytes was 30000, now it is 2000000000"):
        packing.pack(src, dst, group_size=GROUP)
    os.utime(second_shard(src), ns=(1, 1))
    with pytest.raises(CheckpointError, match="its source has changed since, or is another"):
        pack(src, dst)
    assert {f.name: f.stat().st_mtime_ns for f in dst.iterdir()} == before


def test_two_runs_do_not_write_to_one_folder(src: Path, tmp_path: Path) -> None:
    tried = []

    def again(name: str, done: int, total: int) -> None:
        if name and not tried:
            tried.append(name)
            with pytest.raises(CheckpointError, match="is being written by another run"):
                pack(src, tmp_path / "dst")

    packing.verify(src, pack(src, tmp_path / "dst", progress=again))
    assert tried


def test_too_little_room_is_said_before_anything_is_written(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"has 0\.00 GB free, and at least"):
        pack(src, tmp_path / "dst")
    assert not list(tmp_path.glob("dst/*.safetensors*"))


def test_a_disk_that_fills_up_keeps_what_was_finished(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, dst, room = pack(src, tmp_path / "whole"), tmp_path / "dst", 70_000
    pwrite = os.pwrite

    def write(file: int, content: bytes, offset: int) -> int:
        nonlocal room
        if room < len(content):
            raise OSError(errno.ENOSPC, "full")
        room -= len(content)
        return pwrite(file, content, offset)

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(CheckpointError, match=r"No space left on device\. The files that were finished are kept"):
        pack(src, dst)
    assert list(dst.glob("*.safetensors"))
    assert not list(dst.glob("*.part"))
    room = 1 << 30
    pack(src, dst)
    assert {f.name: f.read_bytes() for f in dst.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}


def test_files_that_were_exchanged_are_found(src: Path, tmp_path: Path) -> None:
    dst = pack(src, tmp_path / "dst")
    config, index = dst / "config.json", dst / "model.safetensors.index.json"
    for path, spoil, message in (
        (config, lambda text: text.replace('"spike_k": 3.0', '"spike_k": 4.0'), "is not that of"),
        (index, lambda text: text.replace("00001-of", "00002-of", 1), "does not name the tensors that are there"),
        (index, lambda text: "", "is not JSON"),
    ):
        text = path.read_text()
        path.write_text(spoil(text))
        with pytest.raises(CheckpointError, match=message):
            packing.verify(src, dst)
        path.write_text(text)
    (dst / "packing.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no packing\.json"):
        packing.verify(src, dst)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pack", *map(str, arguments)], env={"COLUMNS": "400"})


def test_command_packs_and_compares(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    size = ("--group-size", GROUP, "--shard-size", SHARD / 1e9)
    result = run(src, dst, *size)
    assert result.exit_code == 0, result.output
    count = len(read_folder(dst))
    assert f"{count} tensors are, bit for bit, what the source implies" in result.output
    assert f"{count} tensors are, bit for bit" in run(src, dst, "--verify").output
    assert f"{count} tensors have the checksums" in run(dst, "--verify").output
    assert "bit for bit" not in run(src, tmp_path / "more", "--no-verify", "--down-proj", *size).output
    assert any("down_proj.codes" in name for name in read_folder(tmp_path / "more"))


def test_command_says_what_is_wrong(src: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((src,), "DST is missing; only --verify takes one folder"),
        ((src, src), "lie one within the other"),
        ((src, tmp_path / "dst", "--verify"), "has no packing.json"),
        ((src, tmp_path / "dst", "--down-proj"), "expected a multiple of group_size, 128"),
        ((src, tmp_path / "dst", "--group-size", 48), "group_size is 48, expected one of (32, 64, 128)"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert re.search(f"error: .*{re.escape(message)}", result.output), result.output
    dst = tmp_path / "packed"
    assert run(src, dst, "--group-size", GROUP).exit_code == 0
    shard = dst / "model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    result = run(src, dst, "--verify")
    assert result.exit_code == 1
    assert "differs from" in result.output


def test_command_says_that_a_place_cannot_be_written(src: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for dst, message in (
        (tmp_path / "taken" / "dst", "taken/dst: Not a directory"),
        (tmp_path / "taken", "taken, a file; expected a folder"),
        ("/proc/self/dst", "/proc/self/dst: "),
    ):
        result = run(src, dst, "--group-size", GROUP)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert result.stderr.count("\n") == 1
    for size in ("nan", "inf", "1e300", "0"):
        assert run(src, tmp_path / "dst", "--shard-size", size).exit_code == 2
    assert not (tmp_path / "dst").exists()
