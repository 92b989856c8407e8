"""The suite proves itself: it rejects every planted bug, and accepts kernels that are right in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from calibration.calibration import Findings, chosen
from calibration.page import text
from calibration.planted import PLANTS, Plant, bug
from calibration.trial import Trial, open_trial
from seeds import SEED
from spikingbrain_hal import ops
from spikingbrain_hal.conformance.checks import CHECKS
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.verdict.judge import MAX_RATIO, RMS_RATIO, Ratios, watched
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.testing import assert_matches, make_inputs

pytestmark = pytest.mark.usefixtures("one_thread")
BUGS = [p for p in chosen([]) if p.wrong]
VARIANTS = [p for p in chosen([]) if not p.wrong]


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    with open_trial(SEED) as trial:
        yield trial


@pytest.mark.parametrize("plant", BUGS, ids=lambda p: p.id)
def test_bug_is_rejected_by_the_check_that_should(plant: Plant, trial: Trial) -> None:
    verdict = trial.judge(plant, (plant.check,))
    assert verdict.accident == ""
    assert verdict.rejected, f"{plant.check} accepted at seed {SEED}: {plant.sentence}"


@pytest.mark.parametrize("plant", VARIANTS, ids=lambda p: p.id)
def test_variant_is_accepted(plant: Plant, trial: Trial) -> None:
    verdict = trial.judge(plant, ("values",))
    assert verdict.record is None, f"seed {SEED}: {verdict.record}"
    assert verdict.ran >= 4


def test_plants_cover_every_operator_both_ways() -> None:
    assert len(BUGS) >= 60
    assert len(VARIANTS) >= 10
    declared = {s.name for op in ops.__all__ for s in (OPERATORS[op], OPERATORS[op].backward) if s}
    assert {p.op for p in BUGS} == declared
    assert {p.op for p in VARIANTS} == declared
    assert {p.check for p in BUGS} <= CHECKS.keys()
    assert all(p.sentence.endswith(".") for p in PLANTS.values())


# ---- the trial itself


@pytest.fixture
def planted() -> Iterator[Callable[..., Plant]]:
    """Registers a function as a bug for one test."""
    before = dict(PLANTS)

    def add(op: str, function: Callable[..., Any]) -> Plant:
        bug(op, "A plant.")(function)
        return next(p for name, p in PLANTS.items() if name not in before)

    yield add
    for name in PLANTS.keys() - before.keys():
        del PLANTS[name]


def test_code_that_breaks_is_no_rejection(planted: Callable[..., Plant], trial: Trial) -> None:
    def misspelt(a: dict[str, Any]) -> Any:
        return a["counts"].no_such_method()

    verdict = trial.judge(planted("spike_expand", misspelt))
    assert "no_such_method" in verdict.accident
    assert not verdict.rejected


def test_results_of_a_wrong_shape_break_the_plant_too(planted: Callable[..., Plant], trial: Trial) -> None:
    def too_long(a: dict[str, Any]) -> Any:
        return OPERATORS["spike_expand"].reference(*(a | {"timesteps": a["timesteps"] + 3}).values())

    assert trial.judge(planted("spike_expand", too_long)).accident


def test_a_right_kernel_called_a_bug_is_accepted_and_reported(planted: Callable[..., Plant], trial: Trial) -> None:
    def right(a: dict[str, Any]) -> Any:
        return OPERATORS["spike_expand"].reference(*a.values())

    plant = planted("spike_expand", right)
    verdict = trial.judge(plant)
    assert not verdict.rejected
    assert verdict.ran == len([i for i in plan("quick", ["spike_expand"]) if i.op == "spike_expand"])
    findings = Findings([SEED], {plant.id: [verdict]})
    assert findings.failures() == [f"spike_expand/right at seed {SEED}: accepted by all {verdict.ran} cases"]
    assert findings.failures()[0] in text(findings, "python -m calibration")


def test_plants_are_named_once_and_for_declared_operators(planted: Callable[..., Plant]) -> None:
    def truncated(a: dict[str, Any]) -> Any: ...

    with pytest.raises(ValueError, match="planted spike_encode/truncated: the name is taken"):
        planted("spike_encode", truncated)
    with pytest.raises(ValueError, match="there is no operator 'spike_decode'"):
        planted("spike_decode", truncated)


def test_ratios_say_which_constants_would_do() -> None:
    """An error just beyond what is allowed needs constants just above those in use."""
    spec = OPERATORS["spike_linear"]
    args = make_inputs(spec, next(c for c in spec.cases if c.attrs.get("out_dtype") == "bfloat16"), seed=SEED)
    y = spec.reference(*args)
    seen: list[Ratios] = []
    with watched(seen.append):
        assert_matches(spec, args, y)
        y.view(-1)[y.abs().argmax()] *= 1 + 8 * 2.0**-8
        with pytest.raises(AssertionError, match="times what is allowed"):
            assert_matches(spec, args, y)
    right, wrong = seen
    assert right.share <= 1 < wrong.share
    assert right.maximum <= MAX_RATIO[torch.bfloat16] < wrong.maximum
    assert right.rms <= RMS_RATIO[torch.bfloat16]
