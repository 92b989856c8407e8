"""``generate`` with the constant-size cache against ``generate`` that reads everything again for each token."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from variants import Variant, make, random_tokens, relative

from spikingbrain_hal.models import GLAswaCache
from spikingbrain_hal.models.transformers_versions import NEWEST, OLDEST, warn_if_untested
from spikingbrain_hal.nn import GrowingCache, SpikeLinear


@pytest.fixture(scope="module")
def model(variant: Variant) -> Any:
    return variant.model()


@pytest.mark.parametrize(
    "how",
    [
        dict(do_sample=False),
        dict(do_sample=False, num_beams=3, num_return_sequences=2),
        dict(do_sample=True, top_k=20, num_return_sequences=3),
        dict(do_sample=True, num_beams=2, temperature=1.5),
    ],
    ids=["greedy", "beam", "sample", "beam-sample"],
)
def test_cached_generation_equals_full_recompute(model: Any, how: dict[str, Any]) -> None:
    prompt = random_tokens(2, 7)
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    written = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        arguments = dict(attention_mask=mask, min_new_tokens=14, max_new_tokens=14, pad_token_id=0)
        written.append(model.generate(prompt, use_cache=use_cache, **arguments, **how))
    assert written[0].shape == (2 * how.get("num_return_sequences", 1), 21)
    assert torch.equal(*written)


def test_prefill_in_chunks(model: Any) -> None:
    prompt = random_tokens(2, 23)
    mask = torch.ones_like(prompt)
    mask[1, :9] = 0
    how = dict(attention_mask=mask, do_sample=False, max_new_tokens=5, pad_token_id=0)
    assert torch.equal(model.generate(prompt, prefill_chunk_size=6, **how), model.generate(prompt, **how))


@torch.no_grad()
def test_a_conversation_reads_on_from_its_cache(model: Any) -> None:
    prompt = random_tokens(1, 8)
    how = dict(do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0, bad_words_ids=[[0]])
    cache = GLAswaCache()
    first = model.generate(prompt, past_key_values=cache, **how)
    assert cache.get_seq_length() == first.shape[1] - 1  # the last token was written, not read
    longer = torch.cat((first, random_tokens(1, 5)), 1)
    assert torch.equal(model.generate(longer, past_key_values=cache, **how), model.generate(longer, **how))


@torch.no_grad()
def test_logits_where_asked(model: Any) -> None:
    tokens = random_tokens(2, 9)
    whole = model(tokens).logits
    for kept, columns in ((2, [-2, -1]), (torch.tensor([1, 5]), [1, 5])):
        logits = model(tokens, logits_to_keep=kept).logits
        assert logits.shape[1] == 2
        assert relative(logits, whole[:, columns]) < 1e-12
    assert model._supports_logits_to_keep()


@torch.no_grad()
def test_rows_of_a_cache_are_selected_and_repeated(variant: Variant, model: Any) -> None:
    tokens, mask = random_tokens(3, 12), torch.ones(3, 12)
    mask[1, 4:] = 0
    cache = model(tokens, attention_mask=mask, use_cache=True).past_key_values
    clone = cache.clone()
    cache.reorder_cache(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    rows, more = [2, 2, 0, 0], random_tokens(3, 4)
    kept = model(more[rows], past_key_values=cache).logits
    expected = model(more, past_key_values=clone).logits[rows]
    assert relative(kept, expected) < 1e-10
    with pytest.raises(NotImplementedError, match="rolled back"):
        cache.crop(3)
    with pytest.raises(ValueError, match="holds 4 rows, the call has 2"):
        model(more[:2], past_key_values=cache)
    cache.reset()
    fresh = model(tokens, past_key_values=cache).logits
    assert relative(fresh, variant.expected(tokens)) < 1e-10


@torch.no_grad()
def test_state_is_constant_in_length(variant: Variant) -> None:
    model, sizes, growing = variant.model(torch.float32), set(), set()
    cache = None
    for _ in range(4):
        cache = model(random_tokens(2, 40), past_key_values=cache, use_cache=True).past_key_values
        rings = [layer.ring for layer in cache.layers if isinstance(layer.ring, GrowingCache)]
        growing.add(sum(ring.nbytes for ring in rings))
        sizes.add(cache.nbytes - sum(ring.nbytes for ring in rings))
    c = model.config
    memory = 2 * c.num_key_value_heads * c.head_dim**2 * 4  # float32, once a key/value head
    window = 2 * 2 * (c.sliding_window + 1) * c.num_key_value_heads * c.head_dim * 4
    sinks = 2 * c.num_sink_tokens * c.num_key_value_heads * c.head_dim * 4
    linear = [layer for layer in cache.layers if layer.linear is not None]
    windowed = [layer for layer in cache.layers if layer.ring is not None and layer.ring not in rings]
    assert sizes == {len(linear) * memory + len(windowed) * window + (sinks and len(cache.layers) * sinks)}
    assert (len(growing) > 1) == bool(rings)
    assert all(layer.linear.memory.dtype == torch.float32 for layer in linear)


@torch.no_grad()
def test_decoding_moves_nothing(variant: Variant) -> None:
    model = variant.model(torch.float32)
    cache = model(random_tokens(2, 40), use_cache=True).past_key_values

    def places() -> list[int]:
        memories = [layer.linear.memory for layer in cache.layers if layer.linear is not None]
        rings = [layer.ring for layer in cache.layers if layer.ring is not None]
        keys = [ring.keys for ring in rings if not isinstance(ring, GrowingCache)]
        return [tensor.data_ptr() for tensor in memories + keys]

    before = places()
    for _ in range(20):
        model(random_tokens(2, 1), past_key_values=cache)
    assert places() == before


@torch.no_grad()
def test_released_decode_window(tmp_path: Any) -> None:
    """The released code sees sliding_window + 1 keys in prefill, and one fewer when it reads a token on a cache."""
    variant = make("7b", tmp_path)
    model, tokens = variant.model(released_decode_window=True), random_tokens(1, 30)
    ours = variant.model()
    assert relative(model(tokens).logits, variant.expected(tokens)) < 1e-10  # prefill as in training

    def decode(of: Any) -> torch.Tensor:
        cache = of(tokens[:, :3], use_cache=True).past_key_values
        return torch.cat([of(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(3, 30)], 1)[0]

    narrow = variant.reference.logits(tokens[0].tolist(), window=variant.reference.c["sliding_window"])[3:]
    assert relative(decode(model), narrow) < 1e-10
    assert relative(decode(ours), variant.expected(tokens)[0, 3:]) < 1e-10
    assert relative(narrow, variant.expected(tokens)[0, 3:]) > 1e-3
    with torch.enable_grad():
        assert relative(decode(model).detach(), narrow) < 1e-10


@torch.no_grad()
def test_arguments_that_contradict_each_other_are_refused(model: Any) -> None:
    tokens = random_tokens(2, 5)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(tokens, inputs_embeds=torch.zeros(2, 5, 56))
    with pytest.raises(ValueError, match=r"attention_mask is \[2, 3\], expected \[2, 5\]"):
        model(tokens, attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="never formed"):
        model(tokens, output_attentions=True)


@torch.no_grad()
def test_embeddings_and_hidden_states(model: Any) -> None:
    tokens, mask = random_tokens(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    given = model(inputs_embeds=model.get_input_embeddings()(tokens), attention_mask=mask, output_hidden_states=True)
    assert torch.equal(given.logits, model(tokens, attention_mask=mask).logits)
    assert len(given.hidden_states) == model.config.num_hidden_layers + 1
    assert all(h.shape == (2, 6, model.config.hidden_size) for h in given.hidden_states)
    assert torch.equal(given.hidden_states[0][mask.bool()], model.get_input_embeddings()(tokens)[mask.bool()])
    assert torch.equal(model(tokens, return_dict=False)[0], model(tokens).logits)


def test_a_prompt_of_embeddings(model: Any) -> None:
    prompt, mask = random_tokens(2, 7), torch.ones(2, 7, dtype=torch.int64)
    mask[0, :3] = 0
    how = dict(attention_mask=mask, do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0)
    embeds, whole = model.get_input_embeddings()(prompt), model.generate(prompt, **how)
    assert torch.equal(model.generate(inputs_embeds=embeds, **how), whole[:, 7:])
    assert torch.equal(model.generate(prompt, inputs_embeds=embeds, **how), whole)
    cache = GLAswaCache()
    with torch.no_grad():
        model(prompt[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
    assert torch.equal(model.generate(inputs_embeds=embeds, past_key_values=cache, **how), whole[:, 7:])


@pytest.mark.parametrize("reentrant", [False, True])
def test_generate_in_training_with_gradient_checkpointing(variant: Variant, reentrant: bool) -> None:
    model, prompt = variant.model(), random_tokens(2, 7)
    how = dict(do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0)
    expected = model.generate(prompt, **how)
    model.train()
    for module in model.modules():  # integer weights are for inference
        module.train(not isinstance(module, SpikeLinear))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    cache = GLAswaCache()
    assert torch.equal(model.generate(prompt, past_key_values=cache, **how), expected)
    assert cache.columns == expected.shape[1] - 1


def test_positions_handed_to_generate_are_checked_not_dropped(model: Any) -> None:
    prompt, how = random_tokens(1, 5), dict(do_sample=False, min_new_tokens=4, max_new_tokens=4, pad_token_id=0)
    assert torch.equal(model.generate(prompt, position_ids=torch.arange(5)[None], **how), model.generate(prompt, **how))
    with pytest.raises(ValueError, match="position_ids do not count the real tokens"):
        model.generate(prompt, position_ids=torch.arange(3, 8)[None], **how)


def test_transformers_sees_what_generation_takes(model: Any) -> None:
    """It looks for names, so a signature of ``**kwargs`` would hide them and let misspelt ones through."""
    parameters = inspect.signature(model.prepare_inputs_for_generation).parameters
    assert {"inputs_embeds", "cache", "past_key_values", "position_ids"} <= parameters.keys()
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    with pytest.raises(ValueError, match="misspelt"):
        model.generate(random_tokens(1, 3), max_new_tokens=2, misspelt=True)


@pytest.mark.parametrize(
    ("version", "tested"),
    [("4.54.1", False), ("4.55.0", True), ("5.0.0", True), ("5.24.7", True), ("5.25.0", False), ("6.0.0rc1", False)],
)
def test_a_version_outside_those_that_were_tested_is_warned_of(version: str, tested: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested(version)
    assert [f"this is {version}" in str(w.message) for w in caught] == ([] if tested else [True])


def test_the_extra_is_bounded_by_what_was_tested() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    major, minor = map(int, NEWEST.split("."))
    assert f'"transformers>={OLDEST},<{major}.{minor + 1}"' in text
