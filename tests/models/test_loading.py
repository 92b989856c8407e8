"""What is loaded, what is refused, and what a checkpoint becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from checkpoints import CONFIG, GROUP, W8ASPIKE, random_tensors, write
from gla_swa_reference import Reference
from transformers import AutoConfig
from variants import Variant, load, make, random_tokens, relative

from spikingbrain_hal.models import GLAswaConfig, GLAswaForCausalLM
from spikingbrain_hal.nn import SpikeLinear, encode_weight
from spikingbrain_hal.packing import pack


@torch.no_grad()
def test_a_saved_model_loads_again(variant: Variant, tmp_path: Path) -> None:
    tokens, model = random_tokens(2, 8), variant.model()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert relative(load(tmp_path)(tokens).logits, model(tokens).logits) < 1e-12


def test_every_tensor_of_the_released_layout_is_used(variant: Variant) -> None:
    model, info = variant.model(output_loading_info=True)
    assert isinstance(model, GLAswaForCausalLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if variant.name != "w8aspike":
        assert set(model.state_dict()) == set(variant.reference.raw)


def test_integers_are_made_once_from_float32_weights(tmp_path: Path) -> None:
    variant = make("w8aspike", tmp_path)
    model, raw = variant.model(torch.bfloat16), variant.reference.raw
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SpikeLinear)}
    kinds = {name.rsplit(".", 1)[-1] for name in layers}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gk_proj", "gate_proj", "up_proj"}
    for name, layer in layers.items():
        scales = raw[name + ".weight_quantizer.scales"][..., 0]
        assert layer.scales.dtype == torch.float32
        assert torch.equal(layer.scales, scales)
        codes = (raw[name + ".weight"].unflatten(1, (-1, GROUP)) / scales[..., None]).round().flatten(1)
        assert torch.equal(layer.codes.float(), codes)
        assert layer.codes.dtype == torch.int16
        assert codes.abs().max() > 127
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(
        model.half().model.layers[0].attn.q_proj.scales,
        raw["model.layers.0.attn.q_proj.weight_quantizer.scales"][..., 0],
    )


@torch.no_grad()
def test_down_projection_may_read_spikes(tmp_path: Path) -> None:
    variant = make("w8aspike", tmp_path)
    tokens = random_tokens(1, 12)
    as_released = variant.expected(tokens)
    variant.reference.c["spike_down_proj"] = True
    expected = variant.expected(tokens)
    assert relative(variant.model(spike_down_proj=True)(tokens).logits, expected) < 1e-10
    assert relative(as_released, expected) > 1e-3


@torch.no_grad()
def test_released_group_size(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_size": 896, "intermediate_size": 256, "num_hidden_layers": 2, "attn_layers": [1]}
    tensors = random_tensors(config, group=128)
    model, tokens = load(write(tmp_path, config, tensors)), random_tokens(1, 10)
    assert model.config.quant_weight_group_size == 128
    expected = Reference(config, tensors).logits(tokens[0].tolist())
    assert relative(model(tokens).logits[0], expected) < 1e-10


@torch.no_grad()
def test_a_packed_checkpoint_is_the_one_it_was_packed_from(tmp_path: Path) -> None:
    variant = make("w8aspike", tmp_path)
    pack(variant.folder, tmp_path / "packed", group_size=GROUP)
    tokens, model = random_tokens(1, 9), load(tmp_path / "packed")
    assert relative(model(tokens).logits, variant.expected(tokens)) < 1e-10
    model.save_pretrained(tmp_path / "again")
    assert relative(load(tmp_path / "again")(tokens).logits, variant.expected(tokens)) < 1e-10


def test_a_plain_checkpoint_packs_to_8_bits(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", W8ASPIKE, random_tensors(W8ASPIKE))
    pack(plain, tmp_path / "packed", group_size=GROUP, down_proj=True)
    model, info = load(tmp_path / "packed", torch.bfloat16, output_loading_info=True)
    layers = [module for module in model.modules() if isinstance(module, SpikeLinear)]
    assert {layer.codes.dtype for layer in layers} == {torch.int8}
    assert len(layers) == 2 * 8 + 2 * 7
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with pytest.raises(ValueError, match="format_version 99"):
        GLAswaConfig(packing={"format_version": 99})


def test_small_integers_are_held_in_8_bits(tmp_path: Path) -> None:
    tensors = random_tensors(W8ASPIKE, GROUP)
    for name in tensors:
        if name.endswith("weight_quantizer.scales"):
            tensors[name] *= 2
    model = load(write(tmp_path, W8ASPIKE, tensors))
    layer = model.model.layers[0].attn.q_proj
    assert layer.codes.dtype == torch.int8
    wide = {name: value.clone() for name, value in model.state_dict().items()}
    name = "model.layers.0.attn.q_proj.codes"
    wide[name] = torch.full_like(wide[name], 190, dtype=torch.int16)
    model.load_state_dict(wide)
    assert (layer.codes == 190).all()  # not wrapped


def test_integers_beyond_the_operator_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reaches 1000\.0, expected at most 512"):
        encode_weight(torch.ones(2, 8), torch.full((2, 1), 1e-3))
    with pytest.raises(ValueError, match="expected at most 512"):
        encode_weight(torch.full((2, 8), torch.nan), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"weight is \[2, 9\] with scales \[2, 2\]"):
        encode_weight(torch.ones(2, 9), torch.ones(2, 2))


def test_integer_weights_do_not_train(tmp_path: Path) -> None:
    model = make("w8aspike", tmp_path).model(torch.float32).train()
    with pytest.raises(RuntimeError, match="integer weights and no gradient"):
        model(random_tokens(1, 3))


@torch.no_grad()
def test_tied_embeddings(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["lm_head.weight"] = tensors["model.embeddings.weight"]
    config = {**CONFIG, "tie_word_embeddings": True}
    folder = write(tmp_path / "tied", config, {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    model, tokens = load(folder), random_tokens(1, 6)
    assert model.lm_head.weight is model.model.embeddings.weight
    assert relative(model(tokens).logits[0], Reference(config, tensors).logits(tokens[0].tolist())) < 1e-10
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(tokens).logits, model(tokens).logits)


def test_generation_settings_come_with_the_integers(tmp_path: Path) -> None:
    variant = make("w8aspike", tmp_path)
    (variant.folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7, "eos_token_id": 1}))
    assert variant.model().generation_config.max_new_tokens == 7


def test_released_sizes() -> None:
    config = GLAswaConfig()
    with torch.device("meta"):
        plain = GLAswaForCausalLM(config)
        spiking = GLAswaForCausalLM(GLAswaConfig(w8aspike=True))
    assert len(list(plain.parameters())) == 395
    assert sum(p.numel() for p in plain.parameters()) == 7_616_542_976
    unscaled = sum(t.numel() for t in spiking.state_dict().values())
    down = 28 * 18_944 * 3584 // 128  # the released checkpoint scales these too, and does not use it
    assert unscaled + down == 7_692_495_104
    assert len(spiking.state_dict()) + 28 == 591


def test_sizes_of_the_76b_architecture() -> None:
    config = GLAswaConfig.spikingbrain_76b()
    with torch.device("meta"):
        model = GLAswaForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    expert = 3 * config.hidden_size * config.intermediate_size
    assert total == 76_055_745_080
    assert round((total - 21 * 15 * expert) / 1e8) == 119  # 15 of 16 routed experts rest
    sparse = [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "router")]
    assert [i + 1 for i in range(28) if i not in sparse] == [1, 2, 3, 5, 7, 9, 11]
    assert [i + 1 for i, layer in enumerate(model.model.layers) if layer.attn.is_full] == [7, 14, 21, 28]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("use_short_conv", True, "use_short_conv is True, expected False"),
        ("attention_dropout", 0.1, "attention_dropout is 0.1, expected 0"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', expected 'swish' or 'silu'"),
        ("num_attention_heads", 5, "hidden_size is 3584, expected a multiple of num_attention_heads"),
        ("num_key_value_heads", 3, "num_attention_heads is 28, expected a multiple of num_key_value_heads"),
        ("num_attention_heads", 3584, "heads have 1 channels"),
        ("full_attn_layers", [1], "expected none without parallel_attention"),
    ],
)
def test_configurations_that_cannot_run_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLAswaConfig(**{key: value})
    with pytest.raises(ValueError, match="num_experts is 4, expected 0 with w8aspike"):
        GLAswaConfig(num_experts=4, w8aspike=True)


def test_the_released_configuration_keeps_its_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GLAswaConfig)
    kept = json.loads(config.to_json_string(use_diff=False))
    assert {key: kept[key] for key in CONFIG if key not in ("transformers_version", "auto_map")} == {
        key: value for key, value in CONFIG.items() if key not in ("transformers_version", "auto_map")
    }


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['transformers'] = None; import spikingbrain_hal.models"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "spikingbrain-hal[models]"' in done.stderr


def test_the_package_does_not_import_transformers() -> None:
    code = "import sys, spikingbrain_hal, spikingbrain_hal.nn; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
