"""Weights in float32 under autocast: what is carried from call to call takes the dtype of what is stored in it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from checkpoints import PARALLEL
from variants import Variant, random_tokens

from spikingbrain_hal.models import GLAswaConfig, GLAswaForCausalLM
from spikingbrain_hal.models.experts import RoutedExperts, grouped_linear

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
CUTS = (0, 5, 6, 7, 19, 20, 26)


@pytest.fixture(scope="module")
def model(variant: Variant) -> Any:
    return variant.model(torch.float32)


def close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> bool:
    """In 16 bits a spike count may flip, which moves all that follows."""
    error = (actual.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    return bool(error < (0.1 if name == "7b" else 0.5))


@HALVES
@torch.no_grad()
def test_pieces_equal_the_whole(variant: Variant, model: Any, half: torch.dtype) -> None:
    tokens, cache, pieces = random_tokens(2, CUTS[-1]), None, []
    expected = variant.expected(tokens)
    with torch.autocast("cpu", half):
        assert close(model(tokens, use_cache=False).logits, expected, variant.name)
        for start, end in pairwise(CUTS):
            output = model(tokens[:, start:end], past_key_values=cache, use_cache=True)
            cache = output["past_key_values"]
            pieces.append(output.logits)
    assert close(torch.cat(pieces, 1), expected, variant.name)
    for layer in cache.layers:
        assert layer.linear is None or layer.linear.memory.dtype == torch.float32
        spiking = variant.name == "w8aspike"  # whose projections autocast does not know
        assert layer.ring is None or layer.ring.keys.dtype == (torch.float32 if spiking else half)


@torch.no_grad()
def test_autocast_may_begin_and_end_between_calls(variant: Variant, model: Any) -> None:
    tokens, cache, pieces = random_tokens(2, CUTS[-1]), None, []
    for i, (start, end) in enumerate(pairwise(CUTS)):
        with torch.autocast("cpu", torch.bfloat16, enabled=i in (1, 2, 4)):
            output = model(tokens[:, start:end], past_key_values=cache, use_cache=True)
        cache = output["past_key_values"]
        pieces.append(output.logits)
    assert close(torch.cat(pieces, 1), variant.expected(tokens), variant.name)


@HALVES
def test_generate(model: Any, half: torch.dtype) -> None:
    prompt = random_tokens(2, 9)
    with torch.autocast("cpu", half):
        written = model.generate(prompt, do_sample=False, min_new_tokens=12, max_new_tokens=12, pad_token_id=0)
    assert written.shape == (2, 21)


@torch.no_grad()
def test_the_residual_stream_stays_wide(model: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(random_tokens(1, 4), output_hidden_states=True).hidden_states
    assert {h.dtype for h in hidden} == {torch.float32}


def test_training(variant: Variant) -> None:
    """Gradients are not compared: an output of few tokens may be normalised from nearly nothing, where bits decide."""
    if variant.name == "w8aspike":
        pytest.skip("has no gradient")
    model, tokens = variant.model(torch.float32).train(), random_tokens(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.testing.assert_close(loss, model(tokens, labels=tokens).loss, rtol=2e-2, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@HALVES
def test_routed_experts_multiply_in_the_dtype_of_autocast(half: torch.dtype) -> None:
    counts, x = torch.tensor([3, 0, 6, 1]), torch.randn(10, 16)
    weight = torch.randn(4, 8, 16)
    with torch.autocast("cpu", half):
        for rows in (x, x.to(half)):
            assert torch.equal(
                grouped_linear(rows, weight, counts), grouped_linear(x.to(half), weight.to(half), counts)
            )
        assert grouped_linear(x.double(), weight.double(), counts).dtype == torch.float64
    experts = RoutedExperts(GLAswaConfig(**PARALLEL))
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 5, 56)
    with torch.autocast("cpu", half):
        narrow = experts(x)
    assert narrow.dtype == half
    torch.testing.assert_close(narrow.float(), experts(x), rtol=5e-2, atol=5e-2)


def test_a_float64_model_is_left_alone() -> None:
    model, tokens = GLAswaForCausalLM(GLAswaConfig(**PARALLEL)).double().eval(), random_tokens(1, 6)
    with torch.no_grad():
        expected = model(tokens).logits
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(tokens).logits, expected)
