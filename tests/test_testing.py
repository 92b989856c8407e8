"""What authors of kernels call: inputs, poison, comparison with the oracle."""

from __future__ import annotations

import pytest
import torch

from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.spec import Case, OpSpec
from spikingbrain_hal.testing import assert_matches, io_dtypes, make_inputs, poison

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = [pytest.param(spec, case, id=f"{spec.name}-{case.id}") for spec in OPERATORS.values() for case in spec.cases]


def tensors(spec: OpSpec, case: Case, seed: int, alternative: bool) -> list[torch.Tensor]:
    args = make_inputs(spec, case, io_dtypes(spec)[-1], seed, alternative=alternative)
    spec.check(args)
    return [a for a in args if isinstance(a, torch.Tensor)]


@pytest.mark.parametrize("alternative", [False, True])
@pytest.mark.parametrize(("spec", "case"), CASES)
def test_inputs_are_legal_and_the_same_for_the_same_seed(spec: OpSpec, case: Case, alternative: bool) -> None:
    first, again, other = (tensors(spec, case, seed, alternative) for seed in (5, 5, 6))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again, strict=True))
    if first[0].numel() > 4:
        assert not torch.equal(first[0].nan_to_num(), other[0].nan_to_num())


def test_assert_matches_accepts_the_right_and_rejects_the_wrong() -> None:
    spec = OPERATORS["attention"]
    args = make_inputs(spec, spec.cases[0], torch.bfloat16)
    o, lse = spec.reference(*args)
    assert 0 < assert_matches(spec, args, (o, lse)) <= 1
    with pytest.raises(AssertionError, match="o has an error of"):
        assert_matches(spec, args, (o * 1.5, lse))
    with pytest.raises(AssertionError, match="lse has shape"):
        assert_matches(spec, args, (o, lse[:1]))


def test_poison_is_never_a_plausible_result() -> None:
    assert poison(torch.zeros(2)).isnan().all()
    assert poison(torch.zeros(2, dtype=torch.int16)).tolist() == [-1, -1]
    assert poison(torch.zeros(2, dtype=torch.uint8)).tolist() == [255, 255]
