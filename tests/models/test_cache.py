"""Hostile hands on a cache: broken off half-way, told another story, somebody else's, out of inference mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from checkpoints import CONFIG
from transformers import DynamicCache
from variants import Variant, random_tokens, relative

from spikingbrain_hal.models import GLAswaCache, GLAswaConfig, GLAswaForCausalLM

GREEDY = dict(do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0)


@pytest.fixture(scope="module")
def model(variant: Variant) -> Any:
    return variant.model()


def read(model: Any, tokens: torch.Tensor, **kwargs: Any) -> GLAswaCache:
    cache = GLAswaCache()
    with torch.no_grad():
        model(tokens, past_key_values=cache, **kwargs)
    return cache


@pytest.mark.parametrize("time", [1, 5])
@torch.no_grad()
def test_a_call_that_raised_half_way_is_not_read_on_from(
    model: Any, time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random_tokens(2, 9 + time)
    cache = read(model, tokens[:, :9])
    before = cache.clone()
    with monkeypatch.context() as broken:
        broken.setattr(model.model.layers[-1].mlp, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens[:, 9:], past_key_values=cache)
    for refused in (cache, cache.clone()):
        with pytest.raises(RuntimeError, match="GLAswaCache: an earlier call ended in an error"):
            model(tokens[:, 9:], past_key_values=refused)
    whole = model(tokens).logits
    assert relative(model(tokens[:, 9:], past_key_values=before).logits, whole[:, 9:]) < 1e-10
    cache.reset()
    assert relative(model(tokens, past_key_values=cache).logits, whole) < 1e-10


@torch.no_grad()
def test_a_call_that_was_refused_changes_nothing(model: Any) -> None:
    tokens = random_tokens(2, 14)
    cache = read(model, tokens[:, :9])
    more = tokens[:, 9:]
    for wrong in (
        dict(attention_mask=torch.ones(2, 4)),
        dict(attention_mask=torch.ones(2, 15)),
        dict(attention_mask=torch.full((2, 5), 0.5)),
        dict(position_ids=torch.arange(5)[None]),
        dict(seq_idx=torch.tensor([[0, 1, 1, 1, 1]])),
        dict(output_attentions=True),
        dict(cache=GLAswaCache()),
    ):
        with pytest.raises(ValueError, match="GLAswaModel: "):
            model(more, past_key_values=cache, **wrong)
    with pytest.raises(ValueError, match="holds 2 rows, the call has 3"):
        model(random_tokens(3, 2), past_key_values=cache)
    assert relative(model(more, past_key_values=cache).logits, model(tokens).logits[:, 9:]) < 1e-10


@torch.no_grad()
def test_a_mask_over_columns_that_were_read_otherwise_is_refused(model: Any) -> None:
    tokens = random_tokens(2, 14)
    mask = torch.ones(2, 14, dtype=torch.int64)
    mask[0, :2], mask[1, 5] = 0, 0
    cache = read(model, tokens[:, :9], attention_mask=mask[:, :9])
    model(tokens[:, 9:10], past_key_values=cache, attention_mask=mask[:, :10])
    later = mask.clone()
    later[1, 7:10] = 0
    with pytest.raises(ValueError, match="calls column 7, 8, 9 of row 1 masked, but an earlier call read it otherwise"):
        model(tokens[:, 10:], past_key_values=cache, attention_mask=later)
    later = mask.clone()
    later[0, 1] = 1
    with pytest.raises(ValueError, match="calls column 1 of row 0 a real token, but"):
        model(tokens[:, 10:], past_key_values=cache, attention_mask=later)
    with pytest.raises(ValueError, match="calls column 5 of row 1 a real token, but"):
        model(tokens[:, 10:], past_key_values=cache, attention_mask=torch.ones(2, 10))
    with pytest.raises(
        ValueError, match=r"is \[2, 15\], expected \[2, at least 4 and at most 14, of which .* read 10\]"
    ):
        model(tokens[:, 10:], past_key_values=cache, attention_mask=torch.ones(2, 15))
    whole = model(tokens, attention_mask=mask).logits[:, 10:]
    for columns in (14, 9, 4):  # a mask may begin anywhere before the columns of the call
        logits = model(tokens[:, 10:], past_key_values=cache.clone(), attention_mask=mask[:, -columns:]).logits
        assert relative(logits, whole) < 1e-10


@torch.no_grad()
def test_masks_follow_the_rows_that_are_selected(model: Any) -> None:
    tokens, mask = random_tokens(2, 6), torch.ones(2, 6)
    mask[1, 2:4] = 0
    cache = read(model, tokens, attention_mask=mask)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    rows, one = mask[[1, 1, 0, 0]], torch.ones(4, 1)
    with pytest.raises(ValueError, match="of row 0 a real token"):
        model(random_tokens(4, 1), past_key_values=cache, attention_mask=torch.cat((rows.flip(0), one), 1))
    model(random_tokens(4, 1), past_key_values=cache, attention_mask=torch.cat((rows, one), 1))
    assert cache.lengths.tolist() == [5, 5, 7, 7]


def test_a_second_turn_that_masks_the_padding_behind_the_end_of_the_first_is_refused(model: Any) -> None:
    """``generate`` feeds padding to rows that have ended, and a memory has read it."""
    prompt, cache = random_tokens(2, 6), GLAswaCache()
    first = model.generate(prompt, past_key_values=cache, **GREEDY)
    mask = torch.ones(2, first.shape[1] + 2)
    mask[0, 8:11] = 0
    with pytest.raises(ValueError, match="calls column 8, 9, 10 of row 0 masked"):
        model.generate(
            torch.cat((first, random_tokens(2, 2)), 1), past_key_values=cache, attention_mask=mask.long(), **GREEDY
        )


@pytest.mark.parametrize("foreign", [DynamicCache, tuple, dict, lambda: ((torch.ones(1, 1, 1, 1),) * 2,)])
def test_what_is_no_cache_of_ours_is_refused_untouched(model: Any, foreign: Callable[[], Any]) -> None:
    tokens, given = random_tokens(1, 4), foreign()
    before = dict(vars(given)) if hasattr(given, "__dict__") else repr(given)
    for call in (model, model.model):
        for name in ("past_key_values", "cache"):
            with pytest.raises(TypeError, match=f"the cache is a {type(given).__name__}, expected a GLAswaCache"):
                call(tokens, **{name: given})
    with pytest.raises(TypeError, match="expected a GLAswaCache"):
        model.generate(tokens, past_key_values=given, **GREEDY)
    assert before == (vars(given) if hasattr(given, "__dict__") else repr(given))


@pytest.mark.parametrize(
    "change",
    [
        dict(num_hidden_layers=2, attn_layers=[1]),
        dict(sliding_window=7),
        dict(attn_layers=[1, 2]),
        dict(num_key_value_heads=7),
        dict(rope_theta=5e5),
        dict(hidden_size=112),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_cache_of_another_model_is_refused(change: dict[str, Any]) -> None:
    one, other = (GLAswaForCausalLM(GLAswaConfig(**{**CONFIG, **c})).eval() for c in ({}, change))
    tokens = random_tokens(1, 4)
    cache = read(other, tokens)
    name = {"hidden_size": "head_dim"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(ValueError, match=f"the cache was filled by a model whose {name} is"):
        one(tokens, past_key_values=cache)
    assert cache.columns == 4
    cache.reset()
    one(tokens, past_key_values=cache)


@pytest.mark.parametrize("then", [torch.no_grad, nullcontext], ids=["no_grad", "grad"])
@pytest.mark.parametrize("columns", [3, 11])
def test_a_prefix_read_in_inference_mode_is_read_on_from(
    variant: Variant, model: Any, then: Callable[[], AbstractContextManager[None]], columns: int
) -> None:
    tokens = random_tokens(2, columns + 6)
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    with torch.inference_mode():
        cache = model(tokens[:, :columns], attention_mask=mask[:, :columns], use_cache=True)["past_key_values"]
    expected = model(tokens, attention_mask=mask).logits
    for start, end in ((columns, columns + 1), (columns + 1, columns + 5), (columns + 5, columns + 6)):
        with then():
            logits = model(tokens[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits
        assert relative(logits.detach(), expected[:, start:end].detach()) < 1e-10
        if logits.requires_grad:
            logits.sum().backward()


def test_generate_goes_on_from_a_prefix_read_in_inference_mode(model: Any) -> None:
    prompt = random_tokens(1, 9)
    with torch.inference_mode():
        cache = model(prompt[:, :7], use_cache=True)["past_key_values"]
    assert torch.equal(model.generate(prompt, past_key_values=cache, **GREEDY), model.generate(prompt, **GREEDY))


def test_generate_refuses_a_cache_that_has_read_all(model: Any) -> None:
    prompt = random_tokens(1, 9)
    for shorter in (prompt, prompt[:, :5]):
        with pytest.raises(ValueError, match="the cache has read 9 columns, expected the whole text"):
            model.generate(shorter, past_key_values=read(model, prompt), **GREEDY)
    with pytest.raises(ValueError, match="a cache is given and use_cache is False"):
        model.generate(prompt, past_key_values=read(model, prompt[:, :4]), use_cache=False, **GREEDY)


@torch.no_grad()
def test_both_names_of_the_cache(model: Any) -> None:
    tokens = random_tokens(1, 9)
    whole = model(tokens).logits
    for name in ("past_key_values", "cache"):
        cache = GLAswaCache()
        model(tokens[:, :5], **{name: cache})
        assert relative(model(tokens[:, 5:], **{name: cache}).logits, whole[:, 5:]) < 1e-10
        cache = read(model, tokens[:, :5])
        assert torch.equal(model.generate(tokens, **{name: cache}, **GREEDY), model.generate(tokens, **GREEDY))
        assert cache.columns == 9 + 5


@torch.no_grad()
def test_a_mask_costs_the_cache_nothing_once_all_is_real(model: Any) -> None:
    cache = read(model, random_tokens(1, 6), attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]))
    for _ in range(5):
        model(random_tokens(1, 3), past_key_values=cache)
    assert cache.masked.shape == (1, 6)
    assert (cache.columns, cache.lengths.tolist()) == (21, [20])
