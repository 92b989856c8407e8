"""Ragged batches in one call, the caches that keep their rows apart, and linear layers of integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikingbrain_hal import ops
from spikingbrain_hal.nn import (
    GrowingCache,
    Layout,
    LinearState,
    RingCache,
    SpikeLinear,
    encode_spikes,
    int8_round,
    spike_round,
)

masks = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3).map(torch.tensor)


@settings(max_examples=30, deadline=None)
@given(mask=masks)
def test_packing_leaves_masked_tokens_out_and_repeats_the_last_real_one(mask: torch.Tensor) -> None:
    batch, time = mask.shape
    layout = Layout.of(batch, time, mask.device, mask)
    x = torch.arange(1.0, batch * time + 1).view(batch, time, 1)
    packed = layout.pack(x)
    assert packed.flatten().tolist() == x[mask].flatten().tolist()
    assert layout.cu_seqlens.diff().tolist() == mask.sum(1).tolist()
    unpacked = layout.unpack(packed)
    for row in range(batch):
        last = 0.0
        for t in range(time):
            last = x[row, t].item() if mask[row, t] else last
            assert unpacked[row, t].item() == last


def test_a_single_column_without_gradient_is_a_step() -> None:
    device = torch.device("cpu")
    with torch.no_grad():
        assert Layout.of(2, 1, device).step
        assert not Layout.of(2, 1, device, in_place=False).step
        assert not Layout.of(2, 1, device, torch.tensor([[1], [0]])).step
    assert not Layout.of(2, 1, device).step


def random_heads(batch: int, time: int) -> list[torch.Tensor]:
    return [torch.randn(batch, time, heads, 4, dtype=torch.float64) for heads in (4, 2, 2)]


@settings(max_examples=25, deadline=None)
@given(mask=masks, cut=st.integers(0, 9), window=st.integers(0, 4))
def test_caches_equal_attention_over_each_row_alone(mask: torch.Tensor, cut: int, window: int) -> None:
    """A window of 0 stands for all keys."""
    batch, time = mask.shape
    q, k, v = random_heads(batch, time)
    empty = torch.zeros(batch, max(window, 1), 2, 4, dtype=torch.float64)
    cache = (RingCache if window else GrowingCache)(empty, empty.clone())
    rows = []
    with torch.no_grad():
        for part in [slice(0, cut), *(slice(t, t + 1) for t in range(cut, time))]:
            layout = Layout.of(batch, len(range(*part.indices(time))), q.device, mask[:, part])
            o, _ = cache.attend(*(layout.pack(x[:, part]) for x in (q, k, v)), layout=layout)
            rows.append(layout.unpack(o))
    found = torch.cat(rows, 1)
    for row, real in enumerate(mask):
        alone = (x[row : row + 1, real] for x in (q, k, v))
        torch.testing.assert_close(found[row, real], ops.attention(*alone, window=window or None)[0])
    assert cache.lengths.tolist() == mask.sum(1).tolist()


def test_a_growing_cache_doubles() -> None:
    cache, sizes = GrowingCache(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)), []
    for t in range(9):
        cache.append(torch.full((1, 1, 1, 1), float(t)), torch.zeros(1, 1, 1, 1))
        sizes.append(cache.keys.shape[1])
    assert sizes == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert cache.seen_by_last()[0].flatten().tolist() == list(range(9))


def test_selected_rows_are_copies() -> None:
    ring = RingCache(torch.randn(3, 4, 1, 2), torch.randn(3, 4, 1, 2))
    ring.append(torch.randn(3, 2, 1, 2), torch.randn(3, 2, 1, 2))
    rows = torch.tensor([2, 0, 0])
    for state, name in ((ring, "keys"), (LinearState(torch.randn(3, 1, 2, 2)), "memory")):
        before, chosen = getattr(state, name).clone(), state.select(rows)
        assert torch.equal(getattr(chosen, name), before[rows])
        getattr(chosen, name).zero_()
        assert torch.equal(getattr(state, name), before)


def test_spike_linear_follows_its_formula() -> None:
    layer, x = SpikeLinear(96, 5, k=2.0, group_size=32).eval(), torch.randn(3, 7, 96)
    layer.codes.random_(-190, 190)
    layer.scales.uniform_(0.01, 0.02)
    torch.nn.init.normal_(layer.bias)
    counts, threshold = ops.spike_encode(x, 2.0)
    sums = torch.zeros(3, 7, 5, dtype=torch.float64)
    for group in range(3):
        part = slice(32 * group, 32 * group + 32)
        sums += counts[..., part].double() @ layer.codes[:, part].double().T * layer.scales[:, group].double()
    expected = threshold.double() * sums + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-4)
    for narrow in (x, x.bfloat16(), x.double()):
        assert torch.equal(layer(encode_spikes(narrow, 2.0)), layer(narrow))
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert (layer.scales.dtype, layer.codes.dtype) == (torch.float32, torch.int16)
    assert "codes=torch.int16" in repr(layer)


def test_spike_linear_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="in_features is 100, expected a multiple of 32"):
        SpikeLinear(100, 3, group_size=32)
    with pytest.raises(ValueError, match="group_size is 8, expected one of"):
        SpikeLinear(64, 3, group_size=8)
    with pytest.raises(RuntimeError, match="no gradient"):
        SpikeLinear(64, 3, group_size=32)(torch.randn(2, 64))


def test_rounding_of_rows() -> None:
    x = torch.randn(6, 40, dtype=torch.bfloat16)
    mean = x.abs().float().mean(-1, keepdim=True).bfloat16().float()
    expected = (x.float() / (mean / 3)).round() * (mean / 3)
    assert torch.equal(spike_round(x), expected.bfloat16())
    y = torch.randn(6, 40)
    scale = y.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(int8_round(y), (y / scale).round() * scale)
    assert (int8_round(y) / scale).abs().max().item() == pytest.approx(127)
    assert not int8_round(torch.zeros(2, 3)).any()
