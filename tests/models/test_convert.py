"""Pickles rewritten as safetensors: every tensor, what belongs to it, no code, and never half a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from checkpoints import CONFIG, random_tensors
from gla_swa_reference import Reference
from safetensors.torch import load_file
from variants import load, random_tokens, relative

from spikingbrain_hal.checkpoint import CheckpointError
from spikingbrain_hal.models import GLAswaForCausalLM, GLAswaModel
from spikingbrain_hal.models.convert import convert_pickle, main


def _pickled(tmp_path: Path, shards: int) -> tuple[Path, dict[str, torch.Tensor]]:
    folder, tensors = tmp_path / "pickle", random_tensors(CONFIG)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "modeling_gla_swa.py").write_text("raise SystemExit")
    names = list(tensors)
    files = [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    for n, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[n::shards]}, folder / file)
    weight_map = {name: files[n % shards] for n, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder, tensors


@pytest.mark.parametrize("model_class", [GLAswaForCausalLM, GLAswaModel])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, model_class: Any) -> None:
    folder, _ = _pickled(tmp_path, 2)
    for use_safetensors in (None, False):
        with pytest.raises(ValueError, match="can run any code") as caught:
            model_class.from_pretrained(folder, use_safetensors=use_safetensors)
        assert f"python -m spikingbrain_hal.models.convert {folder} NEW_FOLDER" in str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
@torch.no_grad()
def test_conversion_keeps_every_tensor(tmp_path: Path, shards: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tensors = _pickled(tmp_path, shards)
    main([str(folder), str(tmp_path / "new")])
    told = capsys.readouterr().out
    assert "can run any code" in told
    assert f"pytorch_model-00001-of-{shards:05}.bin" in told
    read: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "new").glob("*.safetensors"):
        read |= load_file(file)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert not list((tmp_path / "new").glob("*.py"))
    tokens = random_tokens(1, 6)
    assert (
        relative(load(tmp_path / "new")(tokens).logits[0], Reference(CONFIG, tensors).logits(tokens[0].tolist()))
        < 1e-10
    )
    assert "auto_map" not in json.loads((tmp_path / "new/config.json").read_text())
    assert "left behind: modeling_gla_swa.py" in told
    with pytest.raises(CheckpointError, match="expected a folder that is empty or not there"):
        convert_pickle(folder, tmp_path / "new")


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def test_conversion_runs_no_code(tmp_path: Path) -> None:
    proof, folder = tmp_path / "proof", tmp_path / "hostile"
    folder.mkdir()
    torch.save({"weight": Hostile(proof)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is no pickle of tensors and plain containers alone"):
        convert_pickle(folder, tmp_path / "new")
    assert not proof.exists()
    torch.save({"weight": [1]}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a tensor"):
        convert_pickle(folder, tmp_path / "new")
    with pytest.raises(ValueError, match=r"expected a folder with \*.bin"):
        convert_pickle(tmp_path / "new", tmp_path / "newer")


def test_tensors_that_share_storage_are_converted(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    torch.save({"a": shared, "b": shared.T, "c": shared[1:]}, tmp_path / "pytorch_model.bin")
    (file,) = convert_pickle(tmp_path, tmp_path / "new")
    read = load_file(file)
    assert torch.equal(read["a"], shared)
    assert torch.equal(read["b"], shared.T)
    assert torch.equal(read["c"], shared[1:])


def test_a_folder_that_a_trainer_left_is_converted(tmp_path: Path) -> None:
    """What it keeps of its own training is a pickle of anything, and is not even opened."""
    folder, tensors = _pickled(tmp_path, 1)
    (folder / "pytorch_model.bin.index.json").unlink()
    (folder / "pytorch_model-00001-of-00001.bin").rename(folder / "pytorch_model.bin")
    proof = tmp_path / "proof"
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.bin"):
        torch.save(Hostile(proof), folder / name)
    (file,) = convert_pickle(folder, tmp_path / "new")
    assert load_file(file).keys() == tensors.keys()
    assert not proof.exists()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"expected a folder with \*.bin or \*.pt of weights"):
        convert_pickle(folder, tmp_path / "newer")


COPIED = {
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "qwen.tiktoken": "IQ== 0",
    "source.spm": "x",
    "tokenizer.model": "x",
    "merges.txt": "a b",
    "generation_config.json": '{"eos_token_id": 1}',
    "LICENSE": "Apache-2.0",
    "README.md": "# A model",
}
LEFT = (
    "modeling_gla_swa.py",
    "x.py",
    "notes.pkl",
    "kernels.so",
    "trainer_state.json",
    "training_args.bin",
)


def test_what_belongs_to_the_model_goes_along_and_code_does_not(tmp_path: Path) -> None:
    folder, _ = _pickled(tmp_path, 2)
    (folder / "additional_chat_templates").mkdir()
    for name, text in COPIED.items():
        (folder / name).write_text(text)
    for name in LEFT:
        (folder / name).write_text("x")
    named = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}, "eos_token": "."}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    new = tmp_path / "new"
    convert_pickle(folder, new)
    assert {name: (new / name).read_text() for name in COPIED} == COPIED
    assert json.loads((new / "tokenizer_config.json").read_text()) == {"eos_token": "."}
    assert not any((new / name).exists() for name in LEFT)
    assert json.loads((new / "config.json").read_text()) == {k: v for k, v in CONFIG.items() if k != "auto_map"}


def _repeating() -> dict[str, Any]:
    return {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}  # 4 TB, written out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list, expected a state dict"),
        ({"a": 1}, "'a', which is not a tensor"),
        ({1: torch.ones(1)}, "1, which is not a tensor by name"),
        ({"a": torch.eye(3).to_sparse()}, "a is no plain tensor, but torch.sparse_coo"),
        (_repeating(), "a repeats its elements"),
        (b"PK\3\4 is zip", "is no pickle of tensors"),
        (b"", "is no pickle of tensors"),
        ("../model.bin", r"is said to be in '\.\./model\.bin', expected the name of a file beside it"),
        ("/etc/passwd", "expected the name of a file beside it"),
        ("training_args.bin", "holds the state of a training run"),
        ("lost.bin", "lost.bin is missing"),
    ],
)
def test_a_run_that_fails_leaves_nothing(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = _pickled(tmp_path, 2)
    second, index = folder / "pytorch_model-00002-of-00002.bin", folder / "pytorch_model.bin.index.json"
    if isinstance(content, str):
        weight_map = json.loads(index.read_text())["weight_map"]
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | {"model.norm.weight": content}}))
    elif isinstance(content, bytes):
        second.write_bytes(content)
    else:
        torch.save(content, second)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        convert_pickle(folder, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(SystemExit) as ended:
        main([str(folder), str(tmp_path / "new")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    folder, _ = _pickled(tmp_path, 2)

    def stop(name: str) -> None:
        if "00002" in name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_pickle(folder, tmp_path / "new", stop)
    assert sorted(tmp_path.iterdir()) == [folder]


def test_a_tensor_that_two_files_hold_is_refused(tmp_path: Path) -> None:
    for n in (1, 2):
        torch.save({"a": torch.ones(n)}, tmp_path / f"pytorch_model-{n}.bin")
    with pytest.raises(CheckpointError, match="holds a, which another file holds too"):
        convert_pickle(tmp_path, tmp_path / "new")
