"""How far correct kernels stay below what is allowed and wrong ones go beyond: what K and R are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spikingbrain_hal.conformance.checks import CHECKS
from spikingbrain_hal.declare.registry import OPERATORS

from .planted import PLANTS, Plant
from .trial import LONGEST, Errors, Trial, Verdict, open_trial


@dataclass
class Findings:
    """Everything that the plants showed.

    Attributes:
        seeds: Those that are done.
        verdicts: Of every plant, one a seed.
        margins: Of every bug, its largest errors by class of dtypes, over all cases of the check that should reject it,
            at the first seed.
    """

    seeds: list[int] = field(default_factory=list)
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    margins: dict[str, Mapping[str, Errors]] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """One sentence for each bug that was accepted and each variant that was not, empty where all is well."""
        found = []
        for name, verdicts in self.verdicts.items():
            for v in verdicts:
                if v.accident:
                    found.append(f"{name} at seed {v.seed}: the planted code is broken: {v.accident}")
                elif PLANTS[name].wrong and not v.rejected:
                    found.append(f"{name} at seed {v.seed}: accepted by all {v.ran} cases")
                elif not PLANTS[name].wrong and v.record is not None:
                    found.append(f"{name} at seed {v.seed}: rejected by {v.record.id}: {v.record.message[:200]}")
        return found

    def errors(self, plant: Plant, kind: str) -> list[Errors]:
        """A plant's largest errors at one class of dtypes, one a seed."""
        return [v.errors[kind] for v in self.verdicts.get(plant.id, []) if kind in v.errors]


def chosen(ops: Sequence[str]) -> list[Plant]:
    """The plants of some operators and their backwards, of all if none is named; those of one operator in a row.

    Raises:
        ValueError: An operator is unknown, or none of them has a plant.
    """
    unknown = [op for op in ops if op not in OPERATORS]
    if unknown:
        raise ValueError(f"there is no operator {unknown[0]!r}; declared are {', '.join(OPERATORS)}")
    wanted = {*ops, *(f"{op}_backward" for op in ops)} or OPERATORS.keys()
    found = [p for op in OPERATORS if op in wanted for p in PLANTS.values() if p.op == op]
    if not found:
        raise ValueError(f"nothing is planted in {', '.join(ops)}")
    return found


def calibrate(
    plants: Sequence[Plant],
    seeds: Sequence[int],
    after_each: Callable[[Findings], None] = lambda found: None,
    progress: Callable[[Verdict], None] = lambda verdict: None,
) -> Findings:
    """Tries every plant at every seed.

    A bug is tried until its first rejection, and at the first seed in every case of the check that should reject it. A
    variant passes all checks at the first seed, all but the longest at the others.

    Args:
        plants: As :func:`chosen` gives them.
        seeds: Each chooses other inputs.
        after_each: Called with everything found so far when a seed is done.
        progress: Called with each verdict as it comes.
    """
    found = Findings()
    for seed in seeds:
        with open_trial(seed) as trial:
            for plant in plants:
                verdict = _try(trial, plant, found)
                found.verdicts.setdefault(plant.id, []).append(verdict)
                progress(verdict)
        found.seeds.append(seed)
        after_each(found)
    return found


def _try(trial: Trial, plant: Plant, found: Findings) -> Verdict:
    first_seed = not found.seeds
    if not plant.wrong:
        return trial.judge(plant, () if first_seed else [check for check in CHECKS if check not in LONGEST])
    if first_seed:
        verdict = trial.judge(plant, (plant.check,), to_the_end=True)
        found.margins[plant.id] = verdict.errors
        if verdict.rejected:
            return verdict
    return trial.judge(plant)
