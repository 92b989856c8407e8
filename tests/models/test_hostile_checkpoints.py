"""Checkpoints that want something of their reader: to run their code, to read other files, to break it."""

from __future__ import annotations

import builtins
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

pytest.importorskip("transformers")

from checkpoints import CONFIG, GROUP, W8ASPIKE, random_tensors, write
from transformers import AutoModelForCausalLM

from spikingbrain_hal.checkpoint import CheckpointError
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.models import GLAswaForCausalLM
from spikingbrain_hal.models.loading import open_checkpoint

CODE = "from pathlib import Path\nPath({!r}).touch()\n"
NAMED = {
    "AutoConfig": "code.Config",
    "AutoModelForCausalLM": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is there if code of a checkpoint has run; nobody may be asked about it either."""

    def asked(prompt: object = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", asked)
    path = tmp_path / "proof"
    yield path
    assert not path.exists()


def plant(folder: Path, proof: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(str(proof)))


def run(command: str, folder: Path, text: Path) -> Result:
    options = {"generate": ["--prompt", "a"], "inspect": [], "spikes": ["--text", str(text), "--out", str(text) + ".d"]}
    return CliRunner().invoke(app, [command, str(folder), *options[command]], input="y\n", env={"COLUMNS": "300"})


@pytest.mark.parametrize("command", ["generate", "inspect", "spikes"])
def test_the_code_of_an_unknown_model_is_neither_run_nor_asked_about(command: str, tmp_path: Path, proof: Path) -> None:
    config = {"model_type": "brain9", "architectures": ["BrainForCausalLM"], "auto_map": NAMED}
    folder = write(tmp_path / "checkpoint", config, {"a": torch.ones(1)})
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": NAMED}))
    plant(folder, proof, "code.py")
    (tmp_path / "text").write_text("a")
    result = run(command, folder, tmp_path / "text")
    assert result.exit_code == 2, result.output
    assert (
        "model_type is 'brain9', expected 'gla_swa'; architectures ['BrainForCausalLM'] are not served" in result.stderr
    )
    assert "trust_remote_code" not in result.output


def test_the_code_of_a_tokenizer_is_neither_run_nor_asked_about(tmp_path: Path, proof: Path) -> None:
    folder = write(tmp_path / "checkpoint", CONFIG, random_tensors(CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Mine", "auto_map": NAMED}))
    plant(folder, proof, "code.py", "configuration_gla_swa.py", "modeling_gla_swa.py")
    result = run("generate", folder, tmp_path)
    assert result.exit_code == 2, result.output
    assert "tokenizer_config.json names code of its own, auto_map" in result.stderr


def test_code_to_generate_with_is_refused(tmp_path: Path, proof: Path) -> None:
    folder = write(tmp_path / "checkpoint", CONFIG, random_tensors(CONFIG))
    plant(folder, proof, "custom_generate/generate.py", "configuration_gla_swa.py", "modeling_gla_swa.py")
    for load in (GLAswaForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError, match="has code to generate with, custom_generate; it is never run here"):
            load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "kernels-community/flash-attn"),
        ("_attn_implementation", "somebody/kernel"),
        ("_attn_implementation_internal", {"": "somebody/kernel"}),
    ],
)
def test_kernels_on_the_hub_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", CONFIG | {key: value}, random_tensors(CONFIG))
    with pytest.raises(CheckpointError, match=f"{key} is .*, which names code on the hub; none is run here"):
        open_checkpoint(folder, GLAswaForCausalLM)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 7, None]
)
def test_tensors_are_read_from_the_folder_alone(name: Any, tmp_path: Path) -> None:
    write(tmp_path / "other", CONFIG, random_tensors(CONFIG))
    folder = write(tmp_path / "checkpoint", CONFIG, random_tensors(CONFIG), shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(random_tensors(CONFIG), name)}))
    with pytest.raises(CheckpointError, match="expected the name of a file beside it"):
        GLAswaForCausalLM.from_pretrained(folder)
    index.unlink()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"transformers_weights": name}))
    with pytest.raises(CheckpointError, match=r"transformers_weights is|neither model\.safetensors nor"):
        GLAswaForCausalLM.from_pretrained(folder)


def test_a_shape_that_the_configuration_contradicts_is_named(tmp_path: Path) -> None:
    norm, codes = "model.norm.weight", "model.layers.0.attn.q_proj.weight_quantizer.scales"
    plain, spiking = random_tensors(CONFIG), random_tensors(W8ASPIKE, GROUP)
    scales = [name for name in spiking if name.endswith("scales")]
    for config, tensors, message in (
        (CONFIG | {"hidden_size": 28}, plain, "has shape .*, config.json implies"),
        (CONFIG | {"hidden_size": 14 << 40}, plain, "has shape .*, config.json implies|makes no model"),
        (CONFIG | {"num_hidden_layers": 1 << 40}, plain, "is 1099511627776, and there are tensors of 4 layers"),
        (CONFIG, plain | {norm: torch.ones(1)}, rf"{norm} has shape \[1\], config.json implies \[56\]"),
        (CONFIG, plain | {norm: torch.ones(0)}, rf"{norm} has shape \[0\], config.json implies \[56\]"),
        (W8ASPIKE, spiking | {codes: torch.ones(224, 7)}, None),
        (W8ASPIKE, spiking | {codes: torch.ones(7, 224)}, rf"{codes} has shape \[7, 224\]"),
        (W8ASPIKE, spiking | {codes: torch.ones(224)}, rf"{codes} has shape \[224\]"),
        (W8ASPIKE, spiking | {codes: torch.ones(224, 0)}, rf"{codes} has shape \[224, 0\]"),
        (W8ASPIKE, spiking | {name: torch.ones(224) for name in scales}, "expected .out, in / group_size"),
        (W8ASPIKE, spiking | {name: torch.ones(224, 0) for name in scales}, "expected .out, in / group_size"),
        (W8ASPIKE, {k: v for k, v in spiking.items() if k != codes}, "is among the integer weights of config.json or"),
    ):
        folder = write(tmp_path / "checkpoint", config, tensors)
        if message is None:
            open_checkpoint(folder, GLAswaForCausalLM)
        else:
            with pytest.raises(CheckpointError, match=message):
                GLAswaForCausalLM.from_pretrained(folder)


def test_a_command_does_not_run_with_weights_made_up(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "checkpoint", CONFIG, {k: v for k, v in random_tensors(CONFIG).items() if "o_proj" not in k}
    )
    result = run("generate", folder, tmp_path)
    assert result.exit_code == 2, result.output
    assert "lacks model.layers.0.attn.o_proj.weight and 3 other tensors" in result.stderr


# ---- anything, anywhere

ODD = [None, True, -1, 0, 1 << 40, 10**30, 0.5, 1e30, "", "x", "../x", [], [-1], {}, {"x": []}, [[]], "gla_swa"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def spoil(data: st.DataObject, value: Any) -> Any:
    """A value with something else in one place of it, or without it."""
    changed = json.loads(json.dumps(value))
    path = data.draw(st.sampled_from(sorted(places(changed), key=str)), "path")
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans(), "taken out"):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(st.sampled_from(ODD), "value")
    return changed


def spoilt_json(name: str) -> Callable[[Path, st.DataObject], None]:
    def change(folder: Path, data: st.DataObject) -> None:
        (folder / name).write_text(json.dumps(spoil(data, json.loads((folder / name).read_text()))))

    return change


def spoilt_header(folder: Path, data: st.DataObject) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.dumps(spoil(data, json.loads(whole[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])


def spoilt_bytes(folder: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in folder.iterdir())), "file")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, min(len(content), 3000) - 1), "at")
    if data.draw(st.booleans(), "cut"):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255), "with")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [spoilt_json("config.json"), spoilt_json("model.safetensors.index.json"), spoilt_header, spoilt_bytes],
    ids=["config", "index", "header", "bytes"],
)
@pytest.mark.parametrize("group", [None, GROUP], ids=["plain", "w8aspike"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_read_or_refused_in_a_sentence(
    group: int | None, change: Callable[[Path, st.DataObject], None], data: st.DataObject, tmp_path: Path
) -> None:
    config = {**(W8ASPIKE if group else CONFIG), "num_hidden_layers": 2, "attn_layers": [1]}
    folder = write(tmp_path / "checkpoint", config, random_tensors(config, group), shards=2)
    change(folder, data)
    with contextlib.suppress(CheckpointError):
        open_checkpoint(folder, GLAswaForCausalLM)
