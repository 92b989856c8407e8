"""The packed format: what is written, taken up again, and found out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packable import GROUP, HIDDEN, plain_tensors, read_folder, w8aspike_tensors, write_checkpoint, write_file
from torch import Tensor

from seeds import SEED
from spikingbrain_hal import packing
from spikingbrain_hal.checkpoint import CheckpointError

LAYERS = 3
SHARD = 30_000
SPIKED = ("q_proj", "k_proj", "v_proj", "o_proj", "gk_proj", "gate_proj", "up_proj")
ROOT = Path(__file__).parents[2]


def pack(src: Path, dst: Path, **options: Any) -> Path:
    return packing.pack(src, dst, group_size=GROUP, shard_bytes=SHARD, **options)


def implied(tensors: dict[str, Tensor], down_proj: bool) -> dict[str, Tensor]:
    """What a plain checkpoint is to become, computed tensor by tensor."""
    expected = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if "gk_proj.0" in name:
            layer, other = name.removesuffix(".0.weight"), tensors[name.replace("proj.0", "proj.1")]
            tensor = (other.double() @ tensor.double()).float()
        elif "gk_proj.1.weight" in name:
            continue
        if not layer.endswith((*SPIKED, "down_proj") if down_proj else SPIKED):
            expected[name.replace("gk_proj.1.bias", "gk_proj.bias")] = tensor
            continue
        groups = tensor.float().unflatten(1, (-1, GROUP))
        scales = groups.abs().amax(-1) / 127
        scales = torch.where(scales == 0, 1.0, scales)
        expected[layer + ".codes"] = (groups / scales[..., None]).round().flatten(1).to(torch.int8)
        expected[layer + ".scales"] = scales
    return expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("down_proj", [False, True], ids=["down_proj as it is", "down_proj packed"])
def test_plain_checkpoint_is_rounded_to_127_levels_of_each_group(
    tmp_path: Path, dtype: torch.dtype, down_proj: bool
) -> None:
    tensors = plain_tensors(LAYERS, dtype)
    src = write_checkpoint(tmp_path / "src", tensors, LAYERS)
    dst = pack(src, tmp_path / "dst", down_proj=down_proj)
    found, expected = read_folder(dst), implied(tensors, down_proj)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert packing.verify(src, dst) == len(expected)
    assert packing.verify_checksums(dst) == len(expected)
    weight = tensors["model.layers.1.attn.o_proj.weight"].float()
    codes, scales = (found[f"model.layers.1.attn.o_proj.{part}"] for part in ("codes", "scales"))
    restored = (codes.unflatten(1, (-1, GROUP)) * scales[..., None]).flatten(1)
    assert ((restored - weight).abs() <= 0.501 * scales.repeat_interleave(GROUP, 1)).all()


@pytest.mark.parametrize("largest", [120, 127, 128, 194, 512])
def test_w8aspike_checkpoint_keeps_its_integers(tmp_path: Path, largest: int) -> None:
    tensors, integers = w8aspike_tensors(LAYERS, largest)
    src = write_checkpoint(tmp_path / "src", tensors, LAYERS, spike_k=2.5)
    dst = pack(src, tmp_path / "dst")
    found = read_folder(dst)
    for layer, codes in integers.items():
        if layer.endswith("down_proj"):
            assert torch.equal(found[layer + ".weight"], tensors[layer + ".weight"])
            assert layer + ".scales" not in found
            continue
        wide = layer.endswith("q_proj") and largest > 127
        assert found[layer + ".codes"].dtype == (torch.int16 if wide else torch.int8)
        assert torch.equal(found[layer + ".codes"].long(), codes)
        assert torch.equal(found[layer + ".scales"], tensors[layer + ".weight_quantizer.scales"][..., 0])
        assert layer + ".weight" not in found
    assert not any("weight_quantizer" in name for name in found)
    assert torch.equal(found["model.embeddings.weight"], tensors["model.embeddings.weight"])
    assert packing.verify(src, dst) == len(found)
    config = json.loads((dst / "config.json").read_text())
    projections = list(SPIKED)
    description = {"format_version": 1, "source": "w8aspike", "group_size": GROUP, "spike_k": 2.5}
    assert config["packing"] == description | {"projections": projections}
    assert config.items() > json.loads((src / "config.json").read_text()).items()


def test_w8aspike_down_projections_are_packed_where_asked(tmp_path: Path) -> None:
    tensors, integers = w8aspike_tensors(LAYERS, 194)
    dst = pack(write_checkpoint(tmp_path / "src", tensors, LAYERS), tmp_path / "dst", down_proj=True)
    found = read_folder(dst)
    for layer, codes in integers.items():
        assert torch.equal(found[layer + ".codes"].long(), codes)
    assert "down_proj" in json.loads((dst / "config.json").read_text())["packing"]["projections"]


def test_files_are_bounded_and_read_by_the_safetensors_library(tmp_path: Path) -> None:
    safe_open = pytest.importorskip("safetensors").safe_open
    tensors, _ = w8aspike_tensors(LAYERS, 194)
    dst = pack(write_checkpoint(tmp_path / "src", tensors, LAYERS), tmp_path / "dst")
    expected, files = read_folder(dst), sorted(dst.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        with safe_open(file, "pt") as opened:
            assert sum(expected[n].nbytes for n in opened.keys()) <= SHARD or len(opened.keys()) <= 2  # noqa: SIM118
            for name in opened.keys():  # noqa: SIM118
                assert torch.equal(opened.get_tensor(name), expected.pop(name))
    assert not expected


def test_elements_stay_aligned_beside_tensors_of_odd_size(tmp_path: Path) -> None:
    tensors, _ = w8aspike_tensors(LAYERS, 300)
    tensors["model.odd"] = torch.arange(7, dtype=torch.uint8)
    tensors["model.half"] = torch.randn(3).bfloat16()
    tensors["model.steps"] = torch.tensor(5)
    src = write_checkpoint(tmp_path / "src", tensors, LAYERS, shards=1)
    dst = packing.pack(src, tmp_path / "dst", group_size=GROUP)
    found = read_folder(dst)
    for name in ("model.odd", "model.half", "model.steps"):
        assert torch.equal(found[name], tensors[name])
    packing.verify(src, dst)


def test_single_file_without_an_index_is_a_checkpoint(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", plain_tensors(2, torch.bfloat16), 2, shards=1)
    (src / "model.safetensors.index.json").unlink()
    (src / "model-00001-of-00001.safetensors").rename(src / "model.safetensors")
    packing.verify(src, pack(src, tmp_path / "dst"))


def test_all_but_weights_comes_along(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16), 1)
    (src / "generation_config.json").write_text('{"eos_token_id": 1}')
    (src / "pytorch_model.bin").write_bytes(b"x")
    dst = pack(src, tmp_path / "dst")
    others = {f.name for f in dst.iterdir() if f.suffix != ".safetensors"}
    index, record = "model.safetensors.index.json", "packing.json"
    assert others == {"config.json", "tokenizer.json", "generation_config.json", index, record}


def test_code_is_left_behind_with_what_names_it(tmp_path: Path) -> None:
    named = {"auto_map": {"AutoConfig": "configuration_x.X"}}
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16), 1, **named)
    for name in ("tokenizer_config.json", "generation_config.json"):
        (src / name).write_text(json.dumps({**named, "eos_token_id": 1}))
    (src / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"auto_map": 1}}}))  # a token of that name
    (src / "additional_chat_templates").mkdir()
    (src / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    for name in ("modeling_x.py", "training_args.bin", "weights.pkl"):
        (src / name).write_text("raise SystemExit")
    dst = pack(src, tmp_path / "dst")
    packing.verify(src, dst)
    assert not [file for file in dst.rglob("*") if file.suffix in (".py", ".bin", ".pkl")]
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        assert "auto_map" not in json.loads((dst / name).read_text())
    assert (dst / "tokenizer.json").read_text() == (src / "tokenizer.json").read_text()
    assert (dst / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"


class Stopped(BaseException):
    """Stands for a process that ends anywhere."""


def content(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_a_run_stopped_anywhere_is_taken_up_again(tmp_path: Path) -> None:
    tensors, _ = w8aspike_tensors(LAYERS, 194)
    src = write_checkpoint(tmp_path / "src", tensors, LAYERS)
    expected = content(pack(src, tmp_path / "whole"))
    dst, stops, seen = tmp_path / "dst", 0, 0
    while True:
        calls, limit = 0, 5 + 3 * stops
        before = {f.name: f.stat().st_ino for f in dst.glob("*.safetensors")} if dst.exists() else {}

        def stop(name: str, done: int, total: int, limit: int = limit) -> None:
            nonlocal calls, seen
            calls, seen = calls + 1, max(seen, done)
            if calls > limit:
                raise Stopped

        try:
            pack(src, dst, progress=stop)
            break
        except Stopped:
            stops += 1
            with pytest.raises(CheckpointError, match="not finished"):
                packing.verify(src, dst)
        assert before.items() <= {f.name: f.stat().st_ino for f in dst.glob("*.safetensors")}.items()
    assert stops >= 4
    assert content(dst) == expected
    assert seen == sum((src / f"model-0000{i}-of-00003.safetensors").stat().st_size for i in (1, 2, 3)) - overhead(src)


def overhead(src: Path) -> int:
    """Bytes of a source that progress does not count: headers, and the scales of its layers."""
    size = 0
    for file in src.glob("*.safetensors"):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        size += 8 + length
        entries = json.loads(data[8 : 8 + length])
        spans = [e["data_offsets"] for n, e in entries.items() if n.endswith("weight_quantizer.scales")]
        size += sum(last - first for first, last in spans)
    return size


def test_a_killed_process_is_taken_up_again(tmp_path: Path) -> None:
    tensors, _ = w8aspike_tensors(LAYERS, 194)
    src = write_checkpoint(tmp_path / "src", tensors, LAYERS)
    script = f"""
import os, signal
from spikingbrain_hal import packing
from spikingbrain_hal.checkpoint import CheckpointError
def die(name, done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
packing.pack({str(src)!r}, {str(tmp_path / "dst")!r}, group_size={GROUP}, shard_bytes={SHARD}, progress=die)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert result.returncode == -signal.SIGKILL
    left = {f.name for f in (tmp_path / "dst").iterdir()}
    assert any(name.endswith(".part") for name in left)
    assert any(name.endswith(".safetensors") for name in left)
    assert content(pack(src, tmp_path / "dst")) == content(pack(src, tmp_path / "whole"))


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", plain_tensors(2, torch.bfloat16), 2)
    dst = pack(src, tmp_path / "dst")
    before = content(dst), {f.name: f.stat().st_ino for f in dst.glob("*.safetensors")}
    pack(src, dst)
    assert (content(dst), {f.name: f.stat().st_ino for f in dst.glob("*.safetensors")}) == before


@pytest.mark.parametrize("damage", ["removed", "truncated", "emptied"])
def test_a_lost_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    src = write_checkpoint(tmp_path / "src", plain_tensors(2, torch.bfloat16), 2)
    dst = pack(src, tmp_path / "dst")
    before, victim = content(dst), sorted(dst.glob("*.safetensors"))[1]
    if damage == "removed":
        victim.unlink()
    else:
        os.truncate(victim, 0 if damage == "emptied" else victim.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=victim.name):
        packing.verify(src, dst)
    pack(src, dst)
    packing.verify(src, dst)
    assert content(dst).keys() == before.keys()
    assert all(content(dst)[name] == before[name] for name in before if name != "packing.json")


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16), 1)
    dst = pack(src, tmp_path / "dst")
    generator = torch.Generator().manual_seed(SEED)
    for file in sorted(dst.glob("*.safetensors")):
        whole = file.read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        places = torch.randint(start, len(whole), (12,), generator=generator).tolist()
        for place in (start, len(whole) - 1, *places):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match="differs from"):
                packing.verify(src, dst)
            with pytest.raises(CheckpointError, match="differs from its checksum"):
                packing.verify_checksums(dst)
        file.write_bytes(whole)
    packing.verify(src, dst)


def test_another_source_is_found(tmp_path: Path) -> None:
    src = write_checkpoint(tmp_path / "src", plain_tensors(1, torch.bfloat16), 1)
    dst = pack(src, tmp_path / "dst")
    for change, message in (
        ({"model.layers.0.attn.q_proj.weight": torch.zeros(HIDDEN, HIDDEN).bfloat16()}, "differs from what"),
        ({"model.norm.weight": torch.ones(HIDDEN).bfloat16()}, "differs from its source"),
        ({"model.more": torch.ones(1)}, "lacks model.more"),
    ):
        other = write_checkpoint(tmp_path / "other", plain_tensors(1, torch.bfloat16), 1)
        originals = read_folder(src)
        write_file(other / "model-00001-of-00003.safetensors", originals | change)
        weight_map = dict.fromkeys(originals | change, "model-00001-of-00003.safetensors")
        (other / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            packing.verify(other, dst)
        shutil.rmtree(other)
