"""The two attention layers against their formulas, and the ring that the windowed one keeps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from spikingbrain_hal.nn import GatedLinearAttention, RingCache, SpikingBrainConfig, WindowedAttention, rotate

SMALL = SpikingBrainConfig(
    hidden_size=12, query_heads=6, kv_heads=2, head_dim=4, window=5, gate_rank=3, rope_theta=100.0
)


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, SMALL.head_dim))


def test_linear_layer_follows_its_formula() -> None:
    layer, x = GatedLinearAttention(SMALL).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    q, k, v = heads(layer.q_proj(x).relu()), heads(layer.k_proj(x).relu()), heads(layer.v_proj(x))
    decay = heads(torch.sigmoid(layer.g_proj(x)) ** (1 / 16))
    memory, rows = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    for t in range(9):
        memory = decay[:, t, ..., None] * memory + k[:, t, ..., None] * v[:, t, ..., None, :]
        read = torch.einsum("bhk,bhkv->bhv", q[:, t], memory.repeat_interleave(3, 1)) / 2
        rows.append(read / (read.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    expected = torch.stack(rows, 1).flatten(-2) @ layer.o_proj.weight.T
    state = layer.initial_state(2)
    torch.testing.assert_close(layer(x, state), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.memory, memory, rtol=1e-9, atol=1e-9)


def test_windowed_layer_equals_dense_masked_attention() -> None:
    layer, x = WindowedAttention(SMALL).double(), torch.randn(2, 17, 12, dtype=torch.float64)
    q, k = (rotate(heads(y), 0, 100.0).transpose(1, 2) for y in (layer.q_proj(x), layer.k_proj(x)))
    v = heads(layer.v_proj(x)).transpose(1, 2)
    age = torch.arange(17)[:, None] - torch.arange(17)
    seen = (age >= 0) & (age < 5)
    k, v = (y.repeat_interleave(3, 1) for y in (k, v))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    expected = layer.o_proj(dense.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(layer(x, layer.initial_state(2)), expected, rtol=1e-9, atol=1e-9)


def test_rotation_depends_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    for offset in (0, 3, 200_000):
        score = (rotate(q, offset + 7, 1e4) * rotate(k, offset, 1e4)).sum()
        torch.testing.assert_close(score, (rotate(q, 7, 1e4) * k).sum(), rtol=1e-9, atol=1e-9)


def test_rotation_turns_pair_i_by_its_own_wavelength() -> None:
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    turned = rotate(x, 3, 100.0).flatten()
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    torch.testing.assert_close(turned, torch.tensor(expected))


@pytest.mark.parametrize("sizes", [(1,) * 20, (17,), (3, 9, 1, 1, 6), (5, 5, 5), (4, 1, 5, 12)])
def test_ring_holds_the_last_tokens_in_order(sizes: tuple[int, ...]) -> None:
    tokens = torch.arange(1.0, sum(sizes) + 1).view(1, -1, 1, 1)
    ring = RingCache(torch.zeros(1, 5, 1, 1), torch.zeros(1, 5, 1, 1))
    place = ring.keys.data_ptr()
    for piece in tokens.split(sizes, 1):
        ring.append(piece, -piece)
    keys, values = ring.seen_by_next()
    assert torch.equal(keys, tokens[:, -4:])
    assert torch.equal(values, -tokens[:, -4:])
    assert sorted(ring.seen_by_last()[0].flatten().tolist()) == tokens[:, -5:].flatten().tolist()
    assert ring.keys.data_ptr() == place == ring.seen_by_last()[0].data_ptr()


def test_ring_shows_only_what_was_read() -> None:
    ring = RingCache(torch.zeros(1, 5, 1, 1), torch.zeros(1, 5, 1, 1))
    assert ring.seen_by_next()[0].shape == (1, 0, 1, 1)
    ring.append(torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
    assert ring.seen_by_last()[0].flatten().tolist() == [1, 1]


def test_a_window_of_one_token() -> None:
    config = SpikingBrainConfig(**{**vars(SMALL), "window": 1})
    layer, x = WindowedAttention(config).double(), torch.randn(1, 6, 12, dtype=torch.float64)
    expected = layer.o_proj(heads(layer.v_proj(x)).repeat_interleave(3, 2).flatten(-2))
    state = layer.initial_state(1)
    torch.testing.assert_close(layer(x[:, :4], state), expected[:, :4])
    with torch.no_grad():
        torch.testing.assert_close(layer(x[:, 4:5], state), expected[:, 4:5])


def test_bfloat16_layers_keep_a_float32_memory() -> None:
    layer = GatedLinearAttention(SMALL).bfloat16()
    state = layer.initial_state(1)
    with torch.no_grad():
        y = layer(torch.randn(1, 3, 12, dtype=torch.bfloat16), state)
        y = layer(y[:, :1], state)
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
