"""Buffers that constructors compute, in models that ``from_pretrained`` builds without memory."""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikingbrain_hal import compat
from spikingbrain_hal.compat.fla.rotary import RotaryEmbedding
from spikingbrain_hal.compat.flash_attn.rotary import RotaryEmbedding as PackedRotaryEmbedding

transformers = pytest.importorskip("transformers")
BUILT_ON_META = hasattr(transformers.PreTrainedModel, "_move_missing_keys_from_meta_to_device")
on_meta = pytest.mark.skipif(not BUILT_ON_META, reason="this transformers runs constructors with memory")


class Config(transformers.PretrainedConfig):  # type: ignore[misc]
    model_type = "buffers"


class Table(nn.Linear):
    """A layer whose buffers a checkpoint holds (saved) or not."""

    def __init__(self, fill: bool) -> None:
        super().__init__(3, 3)
        self.register_buffer("frequencies", 10.0 ** -torch.arange(4).float(), persistent=False)
        self.register_buffer("numbers", torch.tensor([3, 1, 2]), persistent=False)
        self.register_buffer("flags", torch.ones(2, dtype=torch.bool), persistent=False)
        self.register_buffer("saved", torch.linspace(0, 1, 5))
        if fill:
            table, steps = torch.empty(2), torch.empty(2, dtype=torch.long)
            table[:], steps[:] = 5.0, 7
            self.register_buffer("filled", table, persistent=False)
            self.register_buffer("steps", steps, persistent=False)


class Model(transformers.PreTrainedModel):  # type: ignore[misc]
    config_class = Config
    fill = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.table, self.norm = Table(self.fill), nn.LayerNorm(3)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class FillingModel(Model):
    fill = True


class InitializingModel(FillingModel):
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Table):
            module.filled.fill_(6)
            module.steps = torch.tensor([8, 8])


def loaded(kind: Any, folder: Path, drop: tuple[str, ...] = (), **options: Any) -> Model:
    model = kind(Config())
    nn.init.constant_(model.table.weight, 2)
    model.table.saved.mul_(3)
    state = {name: x for name, x in model.state_dict().items() if name not in drop}
    model.save_pretrained(folder, state_dict=state)
    with warnings.catch_warnings(), compat.installed():
        warnings.simplefilter("error", compat.CompatWarning)
        result: Model = kind.from_pretrained(folder, **options)
    return result


@pytest.mark.parametrize("options", [{}, {"torch_dtype": torch.bfloat16}], ids=str)
def test_computed_buffers_come_out_as_computed(tmp_path: Path, options: dict[str, Any]) -> None:
    """And weights that were read stay what was read, though the model's own initialisation would overwrite them."""
    got, wanted = loaded(Model, tmp_path, **options), Model(Config())
    for name in ("frequencies", "numbers", "flags"):
        a, b = (getattr(m.table, name) for m in (got, wanted))
        assert a.device.type == "cpu"
        assert torch.equal(a, b), name
    assert torch.equal(got.table.saved.float(), 3 * torch.linspace(0, 1, 5).to(got.table.saved.dtype).float())
    assert got.table.weight.eq(2).all()


def test_a_saved_buffer_that_a_checkpoint_lacks_is_computed(tmp_path: Path) -> None:
    assert torch.equal(loaded(Model, tmp_path, drop=("table.saved",)).table.saved, torch.linspace(0, 1, 5))


@on_meta
def test_a_lost_buffer_is_named(tmp_path: Path) -> None:
    with pytest.raises(compat.CompatWarning, match=r"FillingModel: .* into table\.filled, table\.steps; set them"):
        loaded(FillingModel, tmp_path)
    with pytest.warns(compat.CompatWarning), compat.installed():
        model = FillingModel.from_pretrained(tmp_path)
    assert model.table.filled.isnan().all()
    assert model.table.steps.eq(0).all()
    assert torch.equal(model.table.frequencies, 10.0 ** -torch.arange(4).float())


def test_a_parameter_that_a_checkpoint_lacks_is_initialized(tmp_path: Path) -> None:
    got = loaded(Model, tmp_path, drop=("table.weight", "table.bias"))
    assert got.table.weight.eq(0).all()


@on_meta
def test_a_buffer_that_the_model_initializes_is_not_lost(tmp_path: Path) -> None:
    model = loaded(InitializingModel, tmp_path)
    assert model.table.filled.eq(6).all()
    assert model.table.steps.eq(8).all()


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    names = ("get_init_context", "_move_missing_keys_from_meta_to_device", "_initialize_missing_keys")
    before = [vars(transformers.PreTrainedModel).get(name) for name in names]
    with compat.installed(), compat.installed():
        inside = [vars(transformers.PreTrainedModel).get(name) for name in names]
    assert (inside[0] is not before[0]) == BUILT_ON_META
    assert [vars(transformers.PreTrainedModel).get(name) for name in names] == before


@pytest.mark.parametrize("kind", [RotaryEmbedding, PackedRotaryEmbedding])
def test_stand_ins_restore_their_buffers(kind: Any) -> None:
    """``reset_parameters`` is what models call for modules that were built without memory."""
    with torch.device("meta"):
        module = kind(8)
    module.to_empty(device="cpu").get_buffer("inv_freq").fill_(-1)
    module.reset_parameters()
    assert torch.equal(module.inv_freq, kind(8).inv_freq)
    assert [name for name, _ in module.named_buffers()] == ["inv_freq"]


IMPORT = "from fla.models.utils import Cache"


@pytest.mark.parametrize(("profile", "version", "words"), [
    ("0.1", "5.23.0", r"transformers is 5\.23\.0; code of SpikingBrain 1\.0, .* for transformers 4\.55\.2$"),
    ("0.4", "4.55.2", r"code of SpikingBrain 2\.0, .* transformers 4\.57\.1, and 4\.57\.3 for its vision-language"),
    ("0.1", "4.5.5", "4.55.2"),
    ("0.1", "4.55.4", None), ("0.4", "4.57.3", None), ("current", "5.23.0", None),
])  # fmt: skip
def test_versions_that_a_release_was_never_meant_for(
    monkeypatch: pytest.MonkeyPatch, profile: str, version: str, words: str | None
) -> None:
    monkeypatch.setattr(import_module("transformers"), "__version__", version)  # another test may have imported it anew
    with warnings.catch_warnings(record=True) as caught, compat.installed(fla=profile):
        warnings.simplefilter("always")
        exec(compile(IMPORT, "modeling.py", "exec"), {"__name__": "transformers_modules.x"})
    if words is None:
        assert [str(w.message) for w in caught] == []
    else:
        (one,) = caught
        assert re.search(words, str(one.message))
        assert one.category is compat.CompatWarning
        assert one.filename == "modeling.py"
