"""A configuration is refused when it is made, not when a model computes something else than it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from checkpoints import CONFIG, PARALLEL, random_tensors, write
from variants import load, random_tokens

from spikingbrain_hal.models import GLAswaConfig, GLAswaForCausalLM

TYPES = ["linear_attention", "sliding_attention"] * 2

REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling"),
    (dict(rope_scaling=2.0), "rope_scaling"),
    (dict(rope_parameters={"rope_type": "default", "rope_theta": 5e5}), "rope_parameters"),
    (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}), "rope_parameters"),
    (dict(rope_parameters={"rope_theta": 1e6, "partial_rotary_factor": 0.5}), "rope_parameters"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5, expected 1"),
    (dict(use_sliding_window=False), "use_sliding_window is False, expected True"),
    (dict(rms_norm_eps=1e-5), "rms_norm_eps is 1e-05, expected 1e-06"),
    (dict(layer_types=["full_attention"] * 4), "layer_types"),
    (dict(layer_types=TYPES[::-1]), "layer_types"),
    (dict(head_dim=16), "head_dim is 16, expected 4"),
    (dict(elementwise_affine=False), "elementwise_affine is False, expected True"),
    (dict(attn_mode="parallel"), "attn_mode"),
    (dict(sliding_window=None), "sliding_window is None, expected an integer of at least 1"),
    (dict(sliding_window=-1), "sliding_window is -1"),
    (dict(sliding_window=6.0), "sliding_window is 6.0"),
    (dict(num_hidden_layers="4", attn_layers=None), "num_hidden_layers is '4'"),
    (dict(num_hidden_layers=0, attn_layers=None), "num_hidden_layers is 0"),
    (dict(vocab_size=True), "vocab_size is True"),
    (dict(num_attention_heads=0), "num_attention_heads is 0"),
    (dict(hidden_size=-56), "hidden_size is -56"),
    (dict(attn_layers=[-1]), r"attn_layers is \[-1\], expected a list of different layers from 0 to 3"),
    (dict(attn_layers="13"), "attn_layers is '13'"),
    (dict(attn_layers=3), "attn_layers is 3"),
    (dict(attn_layers=[1, 4]), "attn_layers"),
    (dict(attn_layers=[1, 1]), "attn_layers"),
    (dict(attn_layers=[1.0]), "attn_layers"),
    (dict(full_attn_layers=[4], parallel_attention=True), "full_attn_layers"),
    (dict(num_experts=4, dense_layers=[7]), "dense_layers"),
    (dict(num_experts=2, num_experts_per_tok=3), "num_experts_per_tok is 3, expected at most num_experts, which is 2"),
    (dict(num_experts=2, num_experts_per_tok=0), "num_experts_per_tok is 0"),
    (dict(num_experts=-1), "num_experts is -1"),
    (dict(num_sink_tokens=-1), "num_sink_tokens is -1"),
    (dict(norm_eps=float("nan")), "norm_eps is nan, expected a number above 0"),
    (dict(norm_eps="1e-6"), "norm_eps is '1e-6'"),
    (dict(rope_theta=0), "rope_theta is 0"),
    (dict(gate_logit_normalizer=0), "gate_logit_normalizer is 0"),
    (dict(w8aspike="false"), "w8aspike is 'false', expected True or False"),
    (dict(w8aspike=True, quant_weight_group_size=16), "quant_weight_group_size is 16, expected one of"),
    (dict(w8aspike=True, quant_weight_group_size=32), "hidden_size is 56, expected a multiple of quant_weight"),
    (dict(pad_token_id=-1), "pad_token_id is -1, expected None or a token from 0 to 60"),
    (dict(pad_token_id=61), "pad_token_id is 61"),
    (dict(packing={}), "packing is {}, expected the keys format_version, group_size, projections, spike_k"),
    (dict(packing={"format_version": 9}), "packing has format_version 9, expected 1"),
    (dict(packing=3), "packing is 3"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda x: str(x)[:50])
def test_what_is_not_served_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^GLAswaConfig: .*{message}"):
        GLAswaConfig(**{**CONFIG, **change})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "same",
    [
        dict(rope_scaling=None, rope_parameters=None, layer_types=None, head_dim=None),
        dict(rope_scaling={"type": "default"}),
        dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}),
        dict(partial_rotary_factor=1.0, use_sliding_window=True, rms_norm_eps=1e-6, layer_types=TYPES, head_dim=4),
    ],
)
def test_the_same_in_the_words_of_other_models_is_accepted(same: dict[str, Any]) -> None:
    plain, said = GLAswaConfig(**CONFIG), GLAswaConfig(**{**CONFIG, **same})
    assert said.to_dict() == plain.to_dict()
    assert GLAswaConfig(**said.to_dict()).to_dict() == plain.to_dict()


def test_layers_of_two_branches_have_no_type() -> None:
    with pytest.raises(ValueError, match="layer_types"):
        GLAswaConfig(**PARALLEL, layer_types=TYPES[:3])


def test_an_unknown_key_is_named() -> None:
    with pytest.warns(UserWarning, match="GLAswaConfig: slidding_window is no key of this model"):
        GLAswaConfig(**CONFIG, slidding_window=7)


@pytest.mark.parametrize(
    ("change", "message"), [(dict(sliding_window=-1), "-1"), (dict(num_hidden_layers=2), "layers")]
)
def test_values_set_later_are_checked_when_a_model_is_made(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, CONFIG, random_tensors(CONFIG))
    with pytest.raises(ValueError, match=f"GLAswaConfig: .*{message}"):
        load(folder, **change)


@torch.no_grad()
def test_outputs_are_those_that_the_configuration_asks_for() -> None:
    model = GLAswaForCausalLM(GLAswaConfig(**CONFIG, output_hidden_states=True, return_dict=False)).eval()
    tokens = random_tokens(1, 3)
    outputs = model(tokens)
    assert isinstance(outputs, tuple)
    assert len(model(tokens, return_dict=True).hidden_states) == model.config.num_hidden_layers + 1
    model.config._output_attentions = True
    with pytest.raises(ValueError, match="never formed"):
        model(tokens)


@torch.no_grad()
def test_no_shared_expert_is_an_expert_less() -> None:
    model = GLAswaForCausalLM(GLAswaConfig(**{**PARALLEL, "num_shared_experts": 0})).eval()
    assert model(random_tokens(1, 5)).logits.isfinite().all()
