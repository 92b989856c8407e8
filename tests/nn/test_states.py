"""Carried states where they are easily broken: under autocast, out of inference mode, and after an error half-way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from spikingbrain_hal.nn import (
    GatedLinearAttention,
    GrowingCache,
    Layout,
    LinearState,
    RingCache,
    SpikingBrain,
    SpikingBrainConfig,
    WindowedAttention,
)

SMALL = SpikingBrainConfig(
    vocab_size=11, hidden_size=16, layers=4, query_heads=4, kv_heads=2, head_dim=4, mlp_size=24, window=5, gate_rank=3
)
CUTS = (0, 3, 4, 5, 12, 13, 20)


def autocast(half: torch.dtype, enabled: bool = True) -> AbstractContextManager[None]:
    return torch.autocast("cpu", half, enabled=enabled)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("layer_type", [GatedLinearAttention, WindowedAttention])
@torch.no_grad()
def test_layers_in_pieces_under_autocast(layer_type: type, half: torch.dtype) -> None:
    layer, x = layer_type(SMALL), torch.randn(2, CUTS[-1], 16)
    expected, state = layer(x, layer.initial_state(2)), layer.initial_state(2)
    with autocast(half):
        pieces = [layer(x[:, start:end], state) for start, end in pairwise(CUTS)]
    torch.testing.assert_close(torch.cat(pieces, 1).float(), expected, rtol=0.1, atol=0.1)
    if isinstance(state, RingCache):
        assert state.keys.dtype == state.values.dtype == half
    else:
        assert state.memory.dtype == torch.float32


@torch.no_grad()
def test_a_model_in_pieces_while_autocast_comes_and_goes() -> None:
    config = SpikingBrainConfig(**{**vars(SMALL), "spike_k": 40.0})  # so that a flipped count hardly matters
    model, tokens = SpikingBrain(config), torch.randint(11, (2, CUTS[-1]))
    expected, state, pieces = model(tokens)[0], model.initial_state(2), []
    for i, (start, end) in enumerate(pairwise(CUTS)):
        with autocast(torch.bfloat16, i % 3 != 2):
            logits, state = model(tokens[:, start:end], state)
        pieces.append(logits.float())
    error = torch.cat(pieces, 1) - expected
    assert error.square().mean().sqrt() < 0.1 * expected.square().mean().sqrt()


def random_heads(time: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, time, heads, 4, dtype=dtype) for heads in (4, 2, 2))
    return q, k, v


@pytest.mark.parametrize("ring_type", [RingCache, GrowingCache])
@torch.no_grad()
def test_a_ring_has_the_dtype_of_what_it_took_last(ring_type: type[RingCache]) -> None:
    ring = ring_type(torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 4))
    for dtype, time in ((torch.float32, 2), (torch.bfloat16, 1), (torch.float32, 4), (torch.bfloat16, 5)):
        heads = random_heads(time, dtype)
        layout = Layout.of(2, time, heads[0].device)
        o, _ = ring.attend(*(layout.pack(x) for x in heads), layout)
        assert o.dtype == ring.keys.dtype == ring.values.dtype == dtype


@pytest.mark.parametrize("then", [torch.no_grad, nullcontext], ids=["no_grad", "grad"])
@pytest.mark.parametrize("time", [1, 4])
@pytest.mark.parametrize("read", [2, 9])
def test_a_state_made_in_inference_mode_is_read_on_from(
    then: Callable[[], AbstractContextManager[None]], time: int, read: int
) -> None:
    model, tokens = SpikingBrain(SMALL).double(), torch.randint(11, (2, read + time))
    with torch.inference_mode():
        _, state = model(tokens[:, :read])
    whole = model(tokens)[0][:, read:]
    with then():
        logits, state = model(tokens[:, read:], state)
    torch.testing.assert_close(logits, whole, rtol=1e-9, atol=1e-9)
    if logits.requires_grad:
        logits.sum().backward()
    with torch.inference_mode():
        assert model(tokens[:, :1], state)[0].isfinite().all()


def test_a_state_is_refused_after_an_error_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = SpikingBrain(SMALL).double(), torch.randint(11, (2, 12))
    with torch.no_grad():
        _, state = model(tokens[:, :6])
        before = state.clone()
        with monkeypatch.context() as broken:
            broken.setattr(model.blocks[2], "forward", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(tokens[:, 6:], state)
        for refused in (state, state.clone()):
            with pytest.raises(RuntimeError, match="State: an earlier call ended in an error"):
                model(tokens[:, 6:], refused)
        torch.testing.assert_close(model(tokens[:, 6:], before)[0], model(tokens)[0][:, 6:], rtol=1e-9, atol=1e-9)


def test_a_ring_counts_only_what_it_has_written() -> None:
    ring = RingCache(torch.zeros(2, 4, 2, 4), torch.zeros(2, 4, 2, 4))
    with pytest.raises(RuntimeError):
        ring.append(torch.randn(2, 2, 2, 4), torch.randn(2, 2, 2, 5))  # values of another width
    assert ring.length == 0
    assert ring.lengths.tolist() == [0, 0]


def test_a_memory_is_kept_in_the_accumulator_of_what_is_read() -> None:
    state = LinearState(torch.zeros(2, 2, 4, 4, dtype=torch.float64))
    q, k, v = random_heads(1)
    with torch.no_grad():
        state.attend(q, k, v, -torch.rand(2, 1, 2, 4), Layout.of(2, 1, q.device))
    assert state.memory.dtype == torch.float32


def test_prefill_refuses_what_reads_nothing() -> None:
    model = SpikingBrain(SMALL)
    with pytest.raises(ValueError, match="tokens has no column, expected at least 1"):
        model.prefill(torch.zeros(1, 0, dtype=torch.int64))
    for chunk in (0, -1):
        with pytest.raises(ValueError, match=f"chunk is {chunk}, expected at least 1"):
            model.prefill(torch.zeros(1, 3, dtype=torch.int64), chunk=chunk)
