"""Several sequences in a row, as padding-free training packs them: each as if it were alone, or the call is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers import DataCollatorWithFlattening
from variants import Variant, random_tokens, relative

LENGTHS = (7, 1, 12, 4)
TOTAL = sum(LENGTHS)
OFFSETS = torch.tensor([0, 7, 8, 20, 24], dtype=torch.int32)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]
INDICES = torch.arange(4, dtype=torch.int32).repeat_interleave(torch.tensor(LENGTHS))[None]

SAID: dict[str, dict[str, Any]] = {
    "position_ids": dict(position_ids=POSITIONS),
    "cu_seq_lens": dict(cu_seq_lens_q=OFFSETS, cu_seq_lens_k=OFFSETS, max_length_q=12, max_length_k=12),
    "cu_seq_lens_q": dict(cu_seq_lens_q=OFFSETS.long()),
    "seq_idx": dict(seq_idx=INDICES),
    "all": dict(position_ids=POSITIONS, cu_seq_lens_q=OFFSETS, cu_seq_lens_k=OFFSETS, max_length_q=99, seq_idx=INDICES),
}


@pytest.fixture(scope="module")
def model(variant: Variant) -> Any:
    return variant.model()


def alone(model: Any, row: Tensor, use: Callable[[Any], Tensor]) -> list[Tensor]:
    """What a call for each sequence gives."""
    return [use(model(part[None], labels=part[None])) for part in row.split(LENGTHS)]


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
@torch.no_grad()
def test_logits(model: Any, said: dict[str, Any]) -> None:
    tokens = random_tokens(1, TOTAL)
    packed = model(tokens, **said)
    assert packed.get("past_key_values") is None
    assert relative(packed.logits[0], torch.cat(alone(model, tokens[0], lambda o: o.logits[0]))) < 1e-10


@pytest.mark.parametrize("name", ["position_ids", "seq_idx", "cu_seq_lens_q"])
@torch.no_grad()
def test_logits_of_rows_with_masked_tokens(model: Any, name: str) -> None:
    """Masked tokens stand before, between and behind the tokens of the sequences."""
    real = torch.rand(2, 40) < 0.6
    real[0, :3], real[1, 12:14], real[:, -1] = False, False, False
    numbers = torch.stack([torch.arange(40) // 13, torch.arange(40) // 20])
    tokens = random_tokens(2, 40)
    if name == "seq_idx":
        said = numbers
    elif name == "position_ids":
        said = torch.stack([(real[r].cumsum(0) - 1) - _before(real[r], numbers[r]) for r in range(2)])
        said = said.masked_fill(~real, 1)
    else:
        said = torch.tensor([0, 13, 26, 39, 40, 60, 80])
    logits = model(tokens, attention_mask=real.long(), **{name: said}).logits
    for row in range(2):
        for number in numbers[row].unique():
            part = real[row] & (numbers[row] == number)
            if part.any():
                assert relative(logits[row, part], model(tokens[row : row + 1, part]).logits[0]) < 1e-10


def _before(real: Tensor, numbers: Tensor) -> Tensor:
    """Real tokens before the sequence of each column."""
    return torch.stack([(real & (numbers < number)).sum() for number in numbers])


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_loss_and_gradients(variant: Variant, said: dict[str, Any], double: bool) -> None:
    if variant.name == "w8aspike":
        pytest.skip("has no gradient")
    model, tokens = variant.model(torch.float64 if double else torch.float32).train(), random_tokens(1, TOTAL)
    count = torch.tensor(TOTAL - len(LENGTHS))
    found = []
    for whole in (True, False):
        model.zero_grad()
        losses = (
            [model(tokens, labels=tokens, num_items_in_batch=count, **said).loss]
            if whole
            else [model(p, labels=p, num_items_in_batch=count).loss for p in tokens.split(LENGTHS, 1) if p.shape[1] > 1]
        )
        sum(losses).backward()  # type: ignore[union-attr]
        found.append((sum(map(float, losses)), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, packed), (expected, single) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert packed.keys() == single.keys()
    for name, gradient in single.items():  # transformers' loss is float32
        assert relative(packed[name], gradient) < (1e-5 if double else 3e-3), name


def test_without_a_count_the_loss_is_the_mean_over_what_can_be_predicted(model: Any) -> None:
    tokens = random_tokens(1, TOTAL)
    with torch.no_grad():
        loss = model(tokens, labels=tokens, position_ids=POSITIONS).loss
        marked = tokens.masked_fill(POSITIONS == 0, -100)
        assert loss == model(tokens, labels=marked, position_ids=POSITIONS).loss


@torch.no_grad()
def test_what_the_collator_of_transformers_says(model: Any) -> None:
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    rows = [random_tokens(n) for n in LENGTHS]
    batch = collate([{"input_ids": row.tolist()} for row in rows])
    logits = model(**batch).logits[0]
    assert relative(logits, torch.cat([model(row[None]).logits[0] for row in rows])) < 1e-10


@torch.no_grad()
def test_one_sequence_a_row_is_an_ordinary_call(model: Any) -> None:
    tokens = random_tokens(2, 9)
    whole, cache = model(tokens).logits, None
    for start, end in ((0, 5), (5, 6), (6, 9)):
        places = torch.arange(start, end)[None]
        output = model(tokens[:, start:end], past_key_values=cache, position_ids=places, use_cache=True)
        cache = output["past_key_values"]
        assert relative(output.logits, whole[:, start:end]) < 1e-10
    assert torch.equal(model(tokens, cu_seq_lens_q=torch.tensor([0, 9, 18])).logits, whole)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(position_ids=POSITIONS + 1), "do not count .* at row 0, column 0"),
    (dict(position_ids=POSITIONS.clone().index_fill_(1, torch.tensor([10]), 9)), "at row 0, column 10"),
    (dict(position_ids=POSITIONS[:, 1:]), r"position_ids is \[1, 23\], expected \[1, 24\]"),
    (dict(position_ids=POSITIONS.float()), "position_ids is torch.float32, expected integers"),
    (dict(cu_seq_lens_q=OFFSETS[:-1]), r"cu_seq_lens_q is \[0, 7, 8, 20\], expected offsets that rise from 0 to 24"),
    (dict(cu_seq_lens_k=OFFSETS[1:]), "cu_seq_lens_k is .*, expected offsets"),
    (dict(cu_seq_lens_q=OFFSETS[[0, 2, 1, 3, 4]]), "expected offsets that rise"),
    (dict(cu_seq_lens_q=torch.zeros(0, dtype=torch.int64)), "expected offsets that rise"),
    (dict(cu_seq_lens_q=OFFSETS[None]), "expected offsets that rise"),
    (dict(cu_seq_lens_q=torch.arange(25), cu_seq_lens_k=OFFSETS), "cu_seq_lens_k disagree .* column 1"),
    (dict(position_ids=POSITIONS, seq_idx=INDICES // 2), "position_ids and seq_idx disagree .* column 7"),
    (dict(cu_seq_lens_q=OFFSETS, max_length_q=11), "max_length_q is 11, expected at least 12, the longest sequence"),
    (dict(max_length_k=23), "max_length_k is 23, expected at least 24"),
    (dict(seq_idx=INDICES.bool()), "seq_idx is torch.bool, expected integers"),
    (dict(attention_mask=INDICES + 1), "attention_mask holds other values than 0 and 1; .* told apart by position_ids"),
    (dict(position_ids=POSITIONS, use_cache=True), "a row holds several sequences, expected no cache"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "message"), REFUSED, ids=lambda x: str(x)[:40] if isinstance(x, str) else "")
@torch.no_grad()
def test_what_contradicts_itself_is_refused(model: Any, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(random_tokens(1, TOTAL), **said)


@torch.no_grad()
def test_a_sequence_neither_crosses_rows_nor_begins_behind_a_cache(model: Any) -> None:
    tokens = random_tokens(2, 6)
    with pytest.raises(ValueError, match="cu_seq_lens_q has a sequence that goes on at row 1, column 0"):
        model(tokens, cu_seq_lens_q=torch.tensor([0, 4, 12]))
    cache = model(tokens, use_cache=True)["past_key_values"]
    for places in (torch.arange(6), torch.arange(7, 13)):
        with pytest.raises(ValueError, match="or from the tokens that the cache holds, at row 0, column 0"):
            model(tokens, past_key_values=cache, position_ids=places[None])
    with pytest.raises(ValueError, match="a row holds several sequences, expected no cache"):
        model(tokens, past_key_values=cache, seq_idx=torch.tensor([[0, 0, 1, 1, 1, 1]]))
    assert cache.columns == 6
    assert not cache.broken


@pytest.mark.parametrize("name", ["position_id", "cu_seqlens", "num_items", "past_key_value", "cache_position"])
def test_a_misspelt_argument_is_named(model: Any, name: str) -> None:
    for reader in (model, model.model):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            reader(random_tokens(1, 3), **{name: None})
