"""fla's cache: windows at every cut of a text, rows of a batch, and calls that go wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from client import attend, run
from torch import Tensor

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::spikingbrain_hal.compat.CompatWarning")

CACHE = """
from fla.models.modeling_layers import GradientCheckpointingLayer
from fla.models.utils import Cache, FLAGenerationMixin
import transformers
cache = Cache()
assert isinstance(cache, transformers.cache_utils.Cache) and len(cache) == 0 and cache.get_seq_length() == 0
k = torch.arange(24.0).view(2, 6, 2)
for layer in range(2):
    cache.update(recurrent_state=k[:, 0], attn_state=(k[:, :4], -k[:, :4]), layer_idx=layer, offset=4,
                 cache_kwargs=dict(window_size=3))
assert [cache.get_seq_length(n) for n in range(3)] == [4, 4, 0]
state = cache.update(attn_state=(k[:, 4:], -k[:, 4:]), conv_state=(k,), layer_idx=1, offset=2,
                     cache_kwargs=dict(window_size=3))
"""


def test_cache_counts_for_each_layer() -> None:
    got = run(CACHE, fla="0.4")
    cache, k = got["cache"], got["k"]
    assert [cache.get_seq_length(n) for n in range(2)] == [4, 6]
    assert torch.equal(got["state"]["attn_state"][1], -k[:, 1:])
    assert torch.equal(cache[1]["attn_state"][1], -k[:, 3:])
    assert torch.equal(cache[0]["attn_state"][0], k[:, 1:4])
    cache.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(cache[1]["recurrent_state"], k[[1, 1], 0])
    assert cache[1]["conv_state"][0].shape == k.shape
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    assert cache[0]["recurrent_state"].shape == (1, 2)
    assert cache.get_mask_sizes(3, 1) == (9, 0)
    assert cache.get_mask_sizes(torch.arange(3), 0) == (7, 0)
    assert (cache.get_max_length(), cache.get_max_cache_shape()) == (None, -1)
    with pytest.raises(KeyError, match="layer 2 asked for, 2 layers held"):
        cache[2]
    with pytest.raises(ValueError, match="attn_state is a Tensor"):
        cache.update(attn_state=k)
    with pytest.raises(NotImplementedError, match="cannot be rolled back"):
        cache.crop(1)
    copy = type(cache).from_legacy_cache(cache.to_legacy_cache(), seen_tokens=6)
    assert [len(copy), copy.get_seq_length(1)] == [2, 6]
    assert len(list(copy)) == 2
    cache.reset()
    assert (len(cache), cache.get_seq_length()) == (0, 0)


def cache_of(profile: str) -> Any:
    return run("from fla.models.utils import Cache", fla=profile)["Cache"]()


LAYER = """
from flash_attn import flash_attn_func

def layer(cache, q, k, v, window, left, time_axis):
    seen = cache.get_seq_length(0)
    states = [x.flatten(2) if time_axis == 1 else x.flatten(2)[:, None] for x in (k, v)]
    held = cache.update(attn_state=states, offset=q.shape[1], cache_kwargs={"window_size": window})["attn_state"]
    if seen:
        k, v = (x.reshape(q.shape[0], -1, *q.shape[2:]) for x in held)
    if q.shape[1] == 1:
        assert k.shape[1] == min(seen + 1, window)
    return flash_attn_func(q, k, v, causal=True, window_size=(left, 0))
"""


@pytest.mark.parametrize("window", [1, 3, 4, 20])
@pytest.mark.parametrize(("profile", "extra", "time_axis"), [("0.1", 1, -2), ("0.4", 0, 1), ("current", 0, 1)])
def test_a_window_at_every_cut(profile: str, extra: int, time_axis: int, window: int) -> None:
    """A chunk sees what it sees in one go; one token sees W keys, one less than SpikingBrain 1.0 trains with."""
    steps, left = 9, window - 1 + extra
    q, k, v = torch.randn(3, 2, steps, 2, 4).unbind()
    whole, single = (attend(q, k, v, left=n, right=0)[0] for n in (left, window - 1))
    layer = run(LAYER)["layer"]
    cuts = [(0, *c, steps) for a in range(1, steps) for c in ((a,), *((a, b) for b in range(a + 1, steps)))]
    for bounds in [*cuts, range(steps + 1), (0, steps)]:
        cache = cache_of(profile)
        for start, end in pairwise(bounds):
            part = [x[:, start:end] for x in (q, k, v)]
            got = layer(cache, *part, window, left, time_axis)
            wanted = single if end == start + 1 and start else whole
            torch.testing.assert_close(got, wanted[:, start:end], msg=lambda text, b=bounds: f"{tuple(b)}: {text}")
        keys = cache[0]["attn_state"][0]
        assert torch.equal(keys.reshape(2, -1, 2, 4), k[:, -window:])
        assert window > steps or keys.untyped_storage().nbytes() == keys.nbytes


def test_a_call_that_fails_changes_nothing() -> None:
    cache, k = cache_of("current"), torch.rand(2, 3, 4)
    cache.update(recurrent_state=k, attn_state=(k, k), offset=3)
    before = dict(cache[0])
    for options, words in (
        (dict(attn_state=(k[:1], k[:1])), "Sizes of tensors"),
        (dict(attn_state=(k, k, k)), "longer"),
        (dict(attn_state=(k, k), cache_kwargs={"window_size": 0}), "window_size is 0, expected at least 1"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=words):
            cache.update(recurrent_state=k + 1, offset=3, **options)
        assert cache[0] == before
        assert (len(cache), cache.get_seq_length()) == (1, 3)


def partitioned(rows: Tensor, partitions: int) -> Tensor:
    """States as SpikingBrain 2.0 keeps them: each row's own, then the partitions of each row."""
    parts = torch.arange(1, partitions + 1) * 100.0
    return torch.cat((rows, (rows[:, None] + parts).flatten()))[:, None].repeat(1, 3)


def test_partitions_follow_their_rows() -> None:
    """With keys beside them; the smallest state tells the batch where there are none."""
    for keys in (None, (torch.arange(3.0).view(3, 1, 1), torch.arange(3.0).view(3, 1, 1))):
        cache = cache_of("0.4")
        cache.update(recurrent_state=partitioned(torch.arange(3.0), 4), layer_idx=0)
        cache.update(recurrent_state=torch.arange(3.0)[:, None], attn_state=keys, layer_idx=1)
        cache.reorder_cache(torch.tensor([2, 0, 2]))
        assert torch.equal(cache[0]["recurrent_state"], partitioned(torch.tensor([2.0, 0.0, 2.0]), 4))
        cache.batch_select_indices(torch.tensor([True, True, False]))
        cache.batch_repeat_interleave(2)
        assert torch.equal(cache[0]["recurrent_state"], partitioned(torch.tensor([2.0, 2.0, 0.0, 0.0]), 4))
        assert cache[1]["recurrent_state"].flatten().tolist() == [2, 2, 0, 0]
        if keys is not None:
            assert cache[1]["attn_state"][1].flatten().tolist() == [2, 2, 0, 0]


def test_a_state_of_another_batch_is_refused() -> None:
    cache, k = cache_of("0.4"), torch.rand(3, 2, 4)
    cache.update(recurrent_state=torch.rand(4, 2), attn_state=(k, k))
    with pytest.raises(ValueError, match=r"a state is \[4, 2\], expected a first axis that B=3 divides"):
        cache.reorder_cache(torch.tensor([0, 0, 1]))
    assert cache[0]["attn_state"][0] is k
    cache_of("0.4").reorder_cache(torch.tensor([0]))
