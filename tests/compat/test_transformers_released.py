"""Code that comes with a checkpoint, put together as SpikingBrain 1.0's released files are, runs unmodified."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkout import ROOT
from spikingbrain_hal import compat

transformers = pytest.importorskip("transformers")
pytest.importorskip("einops")
pytestmark = pytest.mark.filterwarnings("ignore::spikingbrain_hal.compat.CompatWarning")

FILES = Path(__file__).parent / "released"
LOAD: dict[str, Any] = dict(trust_remote_code=True, local_files_only=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a configuration and the code of its model."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "SpikingBrain-7B"
    folder.mkdir()
    shutil.copy(FILES / "modeling_hybrid.py", folder)
    names = {"AutoConfig": "modeling_hybrid.HybridConfig", "AutoModelForCausalLM": "modeling_hybrid.HybridForCausalLM"}
    (folder / "config.json").write_text(json.dumps({"model_type": "small_hybrid", "auto_map": names}))
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def model(folder: Path) -> Any:
    """The model of that folder, where its random weights are saved."""
    with compat.installed(fla="0.1", strict=True):
        config = transformers.AutoConfig.from_pretrained(folder, **LOAD)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    model.save_pretrained(folder, safe_serialization=True)
    return model.eval()


def continued(model: Any, ids: Tensor, steps: int) -> Tensor:
    """The likeliest continuation, without a cache."""
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    return ids


def test_remote_code_runs_unmodified(folder: Path, model: Any) -> None:
    """Loads, trains, and generates with its cache what it generates without one."""
    with compat.installed(fla="0.1", strict=True):
        again = transformers.AutoModelForCausalLM.from_pretrained(folder, **LOAD).eval()
    ids = torch.randint(3, 40, (2, 12))
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    wanted = continued(model, ids, 8)
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    read: list[int] = []
    again.embed.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[1]))
    assert torch.equal(again.generate(ids, use_cache=False, **options), wanted)
    assert read == list(range(12, 20))
    read.clear()
    assert torch.equal(again.generate(ids, use_cache=True, **options), wanted)
    assert read == [12, *[1] * 7]


def test_padding_in_front_changes_nothing(model: Any) -> None:
    ids = torch.randint(3, 40, (1, 7))
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), 1)
    mask = (padded > 0).long()
    options: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    got = model.generate(padded, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(got[:, 4:], continued(model, ids, 5))


def command() -> list[str]:
    """The README's command for released code, as printed."""
    (line,) = re.findall(r"^python -m spikingbrain_hal\.compat (.*?) +#", (ROOT / "README.md").read_text(), re.M)
    return [sys.executable, "-m", "spikingbrain_hal.compat", *line.split()]


def execute(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(FILES / "run_model.py", folder.parent)
    env = {**os.environ, "HF_HOME": str(folder.parent / "home")}
    return subprocess.run(arguments, cwd=folder.parent, env=env, capture_output=True, text=True, timeout=300)


def test_the_command_in_the_readme(folder: Path, model: Any) -> None:
    """On a script that asks for CUDA; in a process where transformers is loaded after the stand-ins."""
    done = execute(command(), folder)
    assert done.returncode == 0, done.stderr
    wanted = continued(model, torch.tensor([[5, 9, 3, 12, 7]]), 6)[0].tolist()
    assert done.stdout == " ".join(map(str, [*wanted, "cpu"])) + "\n"
    assert 'compat: .cuda(), .to("cuda") and device="cuda" mean cpu in this script' in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_a_device_the_script_has_its_way(folder: Path, model: Any) -> None:
    arguments = command()
    place = arguments.index("--device")
    done = execute(arguments[:place] + arguments[place + 2 :], folder)
    assert done.returncode == 1
    assert "CUDA" in done.stderr.splitlines()[-1]
    assert "compat: the script asks for CUDA, which is not here; see --device" in done.stderr


ASKS = """
from transformers.utils import is_flash_attn_2_available, is_flash_attn_greater_or_equal
answers = is_flash_attn_2_available(), is_flash_attn_greater_or_equal("2.1"), is_flash_attn_greater_or_equal("2.7")
"""


@pytest.mark.parametrize(("asker", "answers"), [
    ("client", (True, True, False)), ("transformers_modules.x.modeling", (True, True, False)),
    ("transformers.models.llama", (False, False, False)), ("accelerate.utils", (False, False, False)),
])  # fmt: skip
def test_client_code_that_asks_for_flash_attn_means_the_stand_in(asker: str, answers: tuple[bool, ...]) -> None:
    names: dict[str, Any] = {"__name__": asker}
    original = transformers.utils.is_flash_attn_2_available
    with compat.installed(flash_attn="2.6.3"):
        exec(ASKS, names)
    assert names["answers"] == answers
    assert transformers.utils.is_flash_attn_2_available is original
    assert not names["is_flash_attn_2_available"]()
    with compat.installed(flash_attn=None):
        exec(ASKS, names)
    assert names["answers"] == (False, False, False)


def test_a_followed_module_keeps_its_loader() -> None:
    """transformers' modules belong to the finder that found them."""
    source = """
import inspect
from spikingbrain_hal import compat
with compat.installed(fla="0.1"), compat.installed(fla="0.4", triton=False):
    from transformers.utils import import_utils
    assert import_utils.is_flash_attn_2_available()
    assert type(import_utils.__loader__) is type(inspect.__loader__) is type(import_utils.__spec__.loader)
assert not import_utils.is_flash_attn_2_available()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
