"""Loaded checkpoints against the naive reference: whole, in pieces, padded, and token by token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from variants import Variant, random_tokens, relative

EXACT = 1e-10  # of float64: a spike count must not flip on a rounding difference


@pytest.fixture(scope="module")
def model(variant: Variant) -> Any:
    return variant.model()


@torch.no_grad()
def test_logits(variant: Variant, model: Any) -> None:
    tokens = random_tokens(2, 31)
    assert relative(model(tokens).logits, variant.expected(tokens)) < EXACT


@torch.no_grad()
def test_logits_in_float32(variant: Variant) -> None:
    tokens = random_tokens(2, 31)
    actual, expected = variant.model(torch.float32)(tokens).logits, variant.expected(tokens)
    if variant.name != "w8aspike":
        assert relative(actual, expected) < 1e-4
        return
    # where a count lies within rounding of a half it may flip, which moves all that follows
    error = (actual.double() - expected).abs().amax(-1) / expected.abs().max()
    assert error[:, 0].max() < 1e-4
    assert error.max() < 0.05


@torch.no_grad()
def test_greedy_decoding(variant: Variant) -> None:
    """Each of 256 tokens is the likeliest under the reference that has read those before it."""
    spiking = variant.name == "w8aspike"
    model = variant.model(torch.float64 if spiking else torch.float32)
    prompt = random_tokens(2, 9)
    written = model.generate(prompt, do_sample=False, min_new_tokens=256, max_new_tokens=256, pad_token_id=0)
    assert written.shape == (2, 265)
    row = written[:1]
    expected = variant.expected(row)[:, 8:-1]
    expected[..., 1] = -torch.inf  # the end of text, which min_new_tokens rules out
    chosen = expected.gather(-1, row[:, 9:, None])[..., 0]
    assert (expected.amax(-1) - chosen).max() <= 1e-4 * expected[expected.isfinite()].abs().max()


def models(variant: Variant, model: Any, single: Any) -> list[tuple[Any, float]]:
    """The model in float64, and in float32, whose kernels are native, where no count can flip."""
    return [(model, EXACT)] + ([] if variant.name == "w8aspike" else [(single, 1e-4)])


@pytest.fixture(scope="module")
def single(variant: Variant) -> Any:
    return variant.model(torch.float32)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 26), max_size=6))
def test_chunked_prefill_equals_one_shot(variant: Variant, model: Any, single: Any, cuts: list[int]) -> None:
    tokens = random_tokens(2, 26)
    for of, tolerance in models(variant, model, single):
        assert relative(in_pieces(of, tokens, [0, *sorted(cuts), 26]), of(tokens).logits.detach()) < tolerance


def in_pieces(model: Any, tokens: torch.Tensor, places: list[int]) -> torch.Tensor:
    with torch.no_grad():
        cache, pieces = None, []
        for start, end in pairwise(places):
            output = model(tokens[:, start:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits)
    return torch.cat(pieces, 1)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(st.lists(st.booleans(), min_size=22, max_size=22), min_size=3, max_size=3), cut=st.integers(0, 22))
def test_masked_tokens_are_not_there(
    variant: Variant, model: Any, single: Any, bits: list[list[bool]], cut: int
) -> None:
    """Left, right or in between, in one call or two: each row equals its own tokens read alone."""
    mask, tokens = torch.tensor(bits), random_tokens(3, 22)
    for of, tolerance in models(variant, model, single):
        with torch.no_grad():
            first = of(tokens[:, :cut], attention_mask=mask[:, :cut], use_cache=True)
            second = of(tokens[:, cut:], attention_mask=mask, past_key_values=first.past_key_values)
            padded = torch.cat((first.logits, second.logits), 1)
            assert padded.isfinite().all()
            for row, real in enumerate(mask):
                if real.any():
                    alone = of(tokens[row : row + 1, real]).logits[0]
                    assert relative(padded[row, real], alone) < tolerance


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batch_equals_the_reference(variant: Variant, model: Any, side: str) -> None:
    lengths, tokens = (17, 4, 11), random_tokens(3, 17)
    mask = torch.tensor([[t < n for t in range(17)] for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    logits = model(tokens, attention_mask=mask.long()).logits
    for row, real in enumerate(mask):
        assert relative(logits[row, real], variant.expected(tokens[row : row + 1, real])[0]) < EXACT


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_prompts_continue_as_they_do_alone(variant: Variant, model: Any, side: str) -> None:
    lengths, tokens = (12, 3, 8), random_tokens(3, 12)
    mask = torch.tensor([[t < n for t in range(12)] for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    how = dict(do_sample=False, min_new_tokens=15, max_new_tokens=15, pad_token_id=0)
    written = model.generate(tokens, attention_mask=mask.long(), **how)[:, 12:]
    for row, real in enumerate(mask):
        alone = model.generate(tokens[row : row + 1, real], **how)[:, int(real.sum()) :]
        assert torch.equal(written[row : row + 1], alone)
