"""Gradients, gradient checkpointing and torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from checkpoints import CONFIG, GROUP, PARALLEL, W8ASPIKE
from variants import make, random_tokens, relative

from spikingbrain_hal.models import GLAswaCache, GLAswaConfig, GLAswaForCausalLM
from spikingbrain_hal.models.experts import grouped_linear
from spikingbrain_hal.nn import SpikeLinear

TRAINABLE = pytest.mark.parametrize("name", ["7b", "76b"])


def gradients(model: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(tokens, attention_mask=mask, labels=tokens).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@TRAINABLE
def test_gradients_equal_those_of_the_reference(name: str, tmp_path: Path) -> None:
    variant, tokens = make(name, tmp_path), random_tokens(1, 14)
    model = variant.model().train()
    logits = model(tokens).logits[0]  # transformers' own loss is float32
    torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    leaves = {key: tensor.requires_grad_() for key, tensor in variant.reference.w.items()}
    logits = variant.reference.logits(tokens[0].tolist())
    torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).backward()
    for key, leaf in leaves.items():
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        actual = found.get(key, torch.zeros_like(leaf))
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")


@TRAINABLE
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(name: str, reentrant: bool, tmp_path: Path) -> None:
    model, tokens = make(name, tmp_path).model(torch.float32).train(), random_tokens(2, 14)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    plain = gradients(model, tokens, mask)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    again = gradients(model, tokens, mask)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    with pytest.raises(ValueError, match="past_key_values is given in training with gradient checkpointing"):
        model(tokens, past_key_values=GLAswaCache())
    assert model(tokens, use_cache=True).past_key_values is None


@TRAINABLE
def test_every_parameter_of_a_new_model_learns(name: str) -> None:
    config = dict(CONFIG if name == "7b" else PARALLEL) | dict(initializer_range=0.2)
    model = GLAswaForCausalLM(GLAswaConfig(**config)).train()
    found = gradients(model, random_tokens(4, 20))
    assert [key for key, _ in model.named_parameters() if key not in found or not found[key].any()] == []


def test_a_new_model_is_initialised_as_configured() -> None:
    model = GLAswaForCausalLM(GLAswaConfig(**{**PARALLEL, "initializer_range": 0.5}))
    mlp = model.model.layers[1].mlp
    for weight in (model.lm_head.weight, mlp.gate_proj, mlp.down_proj, model.model.sink_tokens):
        assert weight.std().item() == pytest.approx(0.5, rel=0.2)
    assert torch.equal(model.model.layers[0].attn.branch_weights, torch.tensor([0.5, 0.5]))
    assert (model.model.layers[0].attn.g_norm.weight == 1).all()


def two_layers(name: str) -> Any:
    """Compiling takes its time for each layer."""
    base = {"7b": CONFIG, "76b": PARALLEL, "w8aspike": W8ASPIKE}[name]
    config = {**base, "num_hidden_layers": 2, "attn_layers": [1]}
    config |= dict(full_attn_layers=[1]) if name == "76b" else {}
    config |= dict(w8aspike=True, quant_weight_group_size=GROUP) if name == "w8aspike" else {}
    model = GLAswaForCausalLM(GLAswaConfig(**config))
    for module in model.modules():
        if isinstance(module, SpikeLinear):
            module.codes.random_(-150, 150)
            module.scales.fill_(1e-3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", ["7b", "76b", "w8aspike"])
def test_forward_compiles_to_one_graph(name: str) -> None:
    model, tokens = two_layers(name).eval(), random_tokens(2, 24)
    if name == "76b":
        model = model.bfloat16()  # in float32 the host splits tokens among experts
    whole = model(tokens).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative(compiled(tokens, use_cache=False).logits, whole) < 1e-5
    torch._dynamo.reset()


@torch.no_grad()
def test_decoding_compiles_once_for_all_lengths() -> None:
    model, tokens = two_layers("7b").eval(), random_tokens(2, 24)
    torch._dynamo.reset()
    counters, graphs = torch._dynamo.utils.counters, []
    counters.clear()
    compiled = torch.compile(model, backend="eager")
    output = compiled(tokens[:, :4], use_cache=True)
    rows = [output.logits]
    for t in range(4, 24):
        rows.append(compiled(tokens[:, t : t + 1], past_key_values=output.past_key_values).logits)
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert relative(torch.cat(rows, 1), model(tokens).logits) < 1e-5
    assert graphs[5] == graphs[-1]


def test_compiled_training() -> None:
    torch.manual_seed(3)
    model, tokens = two_layers("7b").train(), random_tokens(2, 12)
    plain = gradients(model, tokens)
    torch._dynamo.reset()
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), tokens)
    torch._dynamo.reset()
    for key, expected in plain.items():
        torch.testing.assert_close(compiled["_orig_mod." + key], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(16, 8), (6, 10)])
def test_grouped_product_equals_one_product_a_group(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    inputs, outputs = sizes
    counts = torch.tensor([3, 0, 6, 1])
    x = torch.randn(10, inputs).to(dtype).requires_grad_()
    weight = torch.randn(4, outputs, inputs).to(dtype).requires_grad_()
    upstream = torch.randn(10, outputs).to(dtype)
    group = torch.arange(4).repeat_interleave(counts)
    expected = torch.einsum("mk,mnk->mn", x.double(), weight.double()[group])
    actual = grouped_linear(x, weight, counts)
    tolerance = dict(rtol=2e-2, atol=5e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.double(), expected, **tolerance)
    found = torch.autograd.grad(actual, (x, weight), upstream)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, (x, weight), upstream.double()), strict=True):
        torch.testing.assert_close(gradient, wanted, **tolerance)


@torch.no_grad()
def test_bfloat16_model_keeps_float32_memories(tmp_path: Path) -> None:
    for name in ("7b", "76b", "w8aspike"):
        variant, tokens = make(name, tmp_path / name), random_tokens(2, 12)
        model = variant.model(torch.bfloat16)
        assert all(m.scales.dtype == torch.float32 for m in model.modules() if isinstance(m, SpikeLinear))
        output = model(tokens, use_cache=True)
        assert output.logits.dtype == torch.bfloat16
        memories = [layer.linear.memory for layer in output.past_key_values.layers if layer.linear is not None]
        assert {memory.dtype for memory in memories} == {torch.float32}
        error = (output.logits.double() - variant.expected(tokens)).square().mean().sqrt()
        assert error < (0.1 if name == "7b" else 0.5) * variant.expected(tokens).square().mean().sqrt()
