"""The hybrid model: however a sequence is cut, the results are those of reading it whole."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikingbrain_hal.nn import GatedLinearAttention, SpikeCoder, SpikingBrain, SpikingBrainConfig, WindowedAttention

SMALL = SpikingBrainConfig(
    vocab_size=11, hidden_size=16, layers=4, query_heads=4, kv_heads=2, head_dim=4, mlp_size=24, window=5, gate_rank=3
)


def model_of(config: SpikingBrainConfig = SMALL) -> SpikingBrain:
    torch.manual_seed(0)
    model = SpikingBrain(config).double()  # a spike count must not flip on a rounding difference
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 22), max_size=5), batch=st.integers(1, 2))
def test_chunked_prefill_equals_reading_at_once(cuts: list[int], batch: int) -> None:
    model, tokens = model_of(), torch.randint(SMALL.vocab_size, (batch, 22))
    places = [0, *sorted(cuts), 22]
    with torch.no_grad():
        whole, _ = model(tokens)
        state, pieces = None, []
        for start, end in pairwise(places):
            logits, state = model(tokens[:, start:end], state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-9)


def test_chunked_prefill_equals_reading_at_once_in_float32() -> None:
    model, tokens = model_of().float(), torch.randint(SMALL.vocab_size, (2, 40))
    for block in model.blocks:
        block.mlp.spikes = torch.nn.Identity()
    with torch.no_grad():
        whole, _ = model(tokens)
        state, pieces = None, []
        for start, end in ((0, 7), (7, 8), (8, 30), (30, 40)):
            logits, state = model(tokens[:, start:end], state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spiking_projections", [False, True])
def test_decoding_equals_the_rows_of_a_prefill(spiking_projections: bool) -> None:
    config = SpikingBrainConfig(**{**vars(SMALL), "spiking_projections": spiking_projections})
    model, tokens = model_of(config), torch.randint(config.vocab_size, (2, 4 * config.window))
    with torch.no_grad():
        whole, _ = model(tokens)
        state, rows = None, []
        for t in range(tokens.shape[1]):
            logits, state = model(tokens[:, t : t + 1], state)
            rows.append(logits)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-9)


def test_prefill_gives_the_logits_after_the_last_token() -> None:
    model, tokens = model_of(), torch.randint(SMALL.vocab_size, (1, 23))
    whole, _ = model(tokens)
    last, _ = model.prefill(tokens, chunk=4)
    torch.testing.assert_close(last, whole[:, -1:].detach(), rtol=1e-9, atol=1e-9)


def test_state_has_the_same_size_at_every_length() -> None:
    model = model_of()
    sizes = {model.prefill(torch.zeros(1, n, dtype=torch.int64))[1].nbytes for n in (1, 4, 6, 50)}
    linear = 2 * SMALL.kv_heads * SMALL.head_dim**2 * 8
    windowed = 2 * 2 * SMALL.window * SMALL.kv_heads * SMALL.head_dim * 8
    assert sizes == {linear + windowed}


def test_a_clone_of_the_state_is_independent() -> None:
    model = model_of()
    _, state = model.prefill(torch.randint(SMALL.vocab_size, (1, 9)))
    token = torch.tensor([[3]])
    with torch.no_grad():
        first, _ = model(token, state.clone())
        again, _ = model(token, state.clone())
    assert torch.equal(first, again)


def test_the_present_does_not_depend_on_the_future() -> None:
    model, tokens = model_of(), torch.randint(SMALL.vocab_size, (1, 20))
    changed = tokens.clone()
    changed[0, 12] = (tokens[0, 12] + 1) % SMALL.vocab_size
    with torch.no_grad():
        a, b = model(tokens)[0], model(changed)[0]
    assert torch.equal(a[:, :12], b[:, :12])
    assert not torch.equal(a[:, 12:], b[:, 12:])


@pytest.mark.parametrize("spiking_projections", [False, True])
def test_every_parameter_learns(spiking_projections: bool) -> None:
    config = SpikingBrainConfig(**{**vars(SMALL), "spiking_projections": spiking_projections})
    model = model_of(config)
    logits, _ = model(torch.randint(config.vocab_size, (2, 13)))
    logits.square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_gradients_stop_between_calls() -> None:
    model, tokens = model_of(), torch.randint(SMALL.vocab_size, (1, 12))
    _, state = model(tokens[:, :6])
    assert not any(t.requires_grad for s in state.blocks for t in vars(s).values() if torch.is_tensor(t))
    model(tokens[:, 6:], state)[0].sum().backward()


def test_layers_alternate_from_linear_attention() -> None:
    kinds = [type(block.attention) for block in model_of().blocks]
    assert kinds == [GatedLinearAttention, WindowedAttention] * 2


def test_spiking_projections_code_what_the_released_models_code() -> None:
    config = SpikingBrainConfig(**{**vars(SMALL), "spiking_projections": True})
    coders = [n for n, m in SpikingBrain(config).blocks[0].named_modules() if isinstance(m, SpikeCoder)]
    assert coders == ["attention.spikes", "attention.o_proj.spikes", "mlp.spikes"]


def test_the_7b_sizes_give_the_7b_parameters() -> None:
    with torch.device("meta"):
        parameters = list(SpikingBrain(SpikingBrainConfig.spikingbrain_7b()).parameters())
    assert len(parameters) == 395
    assert sum(p.numel() for p in parameters) == 7_616_542_976


def test_generation_repeats_with_its_seed() -> None:
    model, tokens = model_of(), torch.randint(SMALL.vocab_size, (2, 9))
    written = []
    for _ in range(2):
        source = model.generate(*model.prefill(tokens), temperature=2.0, seed=7)
        written.append(torch.cat([next(source) for _ in range(12)], 1))
    assert torch.equal(written[0], written[1])


def test_temperature_zero_takes_the_most_likely_token() -> None:
    model, tokens = model_of(), torch.randint(SMALL.vocab_size, (2, 9))
    logits, state = model.prefill(tokens)
    first = next(model.generate(logits, state, temperature=0))
    assert torch.equal(first, logits.argmax(-1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("kv_heads", 3, "query_heads is 4, expected a multiple of kv_heads"), ("head_dim", 5, "head_dim is 5")],
)
def test_sizes_that_do_not_fit_are_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikingBrainConfig(**{**vars(SMALL), field: value})


def test_the_package_does_not_import_the_layers() -> None:
    code = "import sys, spikingbrain_hal; sys.exit('spikingbrain_hal.nn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
