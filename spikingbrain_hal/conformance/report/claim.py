"""What may be claimed by a report, in one line that carries its denominators."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..verdict import levels
from ..verdict.mustpass import is_frozen
from ..verdict.record import Report


@dataclass(frozen=True)
class Claim:
    """What a run shows, and what must be said beside it.

    Attributes:
        standing: Level and denominators.
        provisos: What limits them: a simulated, incomplete, filtered or quick run.
    """

    standing: levels.Standing
    provisos: tuple[str, ...]

    def __str__(self) -> str:
        s = self.standing
        level = "no level" if s.level is None else f"L{s.level}"
        waivers = f"{len(s.waivers) or 'no'} waiver{'s' * (len(s.waivers) != 1)}"
        opset = f"{'' if is_frozen(s.operator_set) else 'draft '}opset {s.operator_set}"
        whole = f"{level}, {opset}, {len(s.operators)} of {s.of} operators, {waivers}"
        return f"{', '.join(self.provisos)}: {whole}" if self.provisos else whole


def claim(report: Report) -> Claim:
    """What a report shows; an incomplete or filtered run, or one that found a problem, reaches no level."""
    about = report.about
    filtered = any(about["filters"].values())
    provisos = {
        "simulated": about["backend"]["simulated"],
        "incomplete run": not report.complete,
        "filtered run": filtered,
        f"{about['profile']} profile": about["profile"] != "full",
    }
    shown = levels.standing(report, about["operator_set"]["version"])
    if filtered or report.problems:
        shown = replace(shown, level=None)
    return Claim(shown, tuple(name for name, applies in provisos.items() if applies))
