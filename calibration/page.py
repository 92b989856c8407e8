"""What a calibration leaves behind: a page with its tables, and a figure."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikingbrain_hal.conformance.verdict.judge import MAX_RATIO, RMS_RATIO
from spikingbrain_hal.declare.registry import OPERATORS

from .calibration import Findings
from .planted import PLANTS, Plant
from .trial import LONGEST, Errors

KINDS = ("float32", "16-bit")
OPENING = """# Calibration

<!-- Written by `python -m calibration`. -->

The conformance suite on trial. Each planted kernel stands in for one operator while all others are references: the
quick profile must reject every bug and accept every correct kernel that computes in another way. An error is given as
its share of what is allowed, so that above 1 means rejected; K and R are what `MAX_RATIO` and `RMS_RATIO` would have to
be at least to accept a result.
"""


@dataclass(frozen=True)
class Row:
    """One operator at one class of dtypes."""

    op: str
    kind: str
    right: Errors
    closest: Plant | None
    margin: float


def write(found: Findings, folder: Path, command: str) -> list[Path]:
    """Writes ``calibration.md`` and ``calibration.svg``.

    Args:
        found: What a calibration found.
        folder: Where to; made if absent.
        command: The command that repeats it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, figure = folder / "calibration.md", folder / "calibration.svg"
    page.write_text(text(found, command), encoding="utf-8")
    _draw(found, figure)
    return [page, figure]


def text(found: Findings, command: str) -> str:
    """The page, in Markdown."""
    plants = [PLANTS[name] for name in found.verdicts]
    bugs, variants = [p for p in plants if p.wrong], [p for p in plants if not p.wrong]
    lines = [OPENING, f"    {command}", "", *_summary(found, bugs, variants), ""]
    lines += ["![Errors as shares of what is allowed](calibration.svg)", "", "## K and R", "", *_limits(found), ""]
    lines += ["## Bugs", "", *_bug_table(found, bugs), "", "## Correct variants", "", *_variant_table(found, variants)]
    return "\n".join([*lines, ""])


def _summary(found: Findings, bugs: Sequence[Plant], variants: Sequence[Plant]) -> Iterator[str]:
    trials = [v for p in bugs for v in found.verdicts[p.id]]
    runs = [v for p in variants for v in found.verdicts[p.id]]
    seeds = f"{len(found.seeds)} seed{'s' * (len(found.seeds) > 1)} ({', '.join(map(str, found.seeds))})"
    yield f"{seeds}, torch {torch.__version__.split('+')[0]}, {platform.machine()}:"
    yield ""
    yield f"- {sum(v.rejected for v in trials)} of {len(trials)} trials of {len(bugs)} bugs ended in rejection."
    yield f"- {sum(v.record is None for v in runs)} of {len(runs)} trials of {len(variants)} variants in acceptance."
    yield from (f"- **{failure}**" for failure in found.failures())
    yield ""
    yield "A bug is tried until its first rejection. A variant passes every check at the first seed, later all"
    yield f"but {', '.join(LONGEST[:-1])} and {LONGEST[-1]}, which take longest."


def rows(found: Findings) -> list[Row]:
    """One for each operator and class of dtypes that errors are measured in."""
    made = []
    for op in OPERATORS:
        plants = [PLANTS[name] for name in found.verdicts if PLANTS[name].op == op]
        for kind in KINDS:
            right = Errors()
            for plant in plants:
                for errors in found.errors(plant, kind) if not plant.wrong else []:
                    right = right.add(errors)
            margins = {p.id: found.margins[p.id] for p in plants if p.wrong and p.id in found.margins}
            beyond = {name: found.margins[name][kind].share for name in margins if kind in found.margins[name]}
            beyond = {name: share for name, share in beyond.items() if share > 1}
            closest = min(beyond, key=lambda name: beyond[name]) if beyond else ""
            if right.share or closest:
                made.append(Row(op, kind, right, PLANTS.get(closest), beyond.get(closest, math.inf)))
    return made


def _limits(found: Findings) -> Iterator[str]:
    yield f"In use are K on the largest error and R on the root mean square: {_in_use()}."
    yield (
        "Of the bugs that errors reject at a class of dtypes, the closest is the one whose largest error, over all "
        "cases"
    )
    yield "of the check that should reject it, goes least beyond what is allowed at one seed."
    yield from ("", "| operator | outputs | variants need K | R | largest share | closest bug | its share |")
    yield "|---|---|---|---|---|---|---|"
    for row in rows(found):
        closest = f"{row.closest.name} | {_number(row.margin)}" if row.closest else "| "
        e = row.right
        yield f"| {row.op} | {row.kind} | {e.maximum:.2f} | {e.rms:.2f} | {e.share:.2f} | {closest} |"


def _in_use() -> str:
    limits = ((str(d).removeprefix("torch."), MAX_RATIO[d], RMS_RATIO[d]) for d in MAX_RATIO)
    return "; ".join(f"{name} K = {k:g}, R = {r:g}" for name, k, r in limits)


def _bug_table(found: Findings, bugs: Sequence[Plant]) -> Iterator[str]:
    yield "The share is the smallest over the seeds at the first rejection, then the largest in any case at one seed;"
    yield "none where something else than an error gives the bug away."
    yield from ("", "| operator | bug | rejected by | share | at most |", "|---|---|---|---|---|")
    for plant in bugs:
        verdicts = found.verdicts[plant.id]
        checks = Counter(v.record.check for v in verdicts if v.record)
        shares = [v.record.worst for v in verdicts if v.record and v.record.worst is not None]
        first = _number(min(shares)) if shares else ""
        most = max((e.share for e in found.margins.get(plant.id, {}).values()), default=0.0)
        by = ", ".join(f"{check} {n} times" if len(checks) > 1 else check for check, n in checks.most_common())
        what = f"`{plant.name}`: {plant.sentence}"
        yield f"| {plant.op} | {what} | {by or 'nothing'} | {first} | {_number(most) if most > 1 else ''} |"


def _variant_table(found: Findings, variants: Sequence[Plant]) -> Iterator[str]:
    yield from ("| operator | variant | needs K | R | largest share |", "|---|---|---|---|---|")
    for plant in variants:
        worst = Errors()
        for errors in (e for kind in KINDS for e in found.errors(plant, kind)):
            worst = worst.add(errors)
        what = f"`{plant.name}`: {plant.sentence}"
        yield f"| {plant.op} | {what} | {worst.maximum:.2f} | {worst.rms:.2f} | {worst.share:.2f} |"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}" if value < 1e5 else f"{value:.0e}"


def _draw(found: Findings, path: Path) -> None:
    """Each plant at its operator and class of dtypes, by the share of what is allowed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "calibration"  # the same figure from the same numbers
    table = rows(found)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.35 * max(len(table), 1)), layout="constrained")
    for at, row in enumerate(reversed(table)):
        for name in found.verdicts:
            plant = PLANTS[name]
            if plant.op != row.op:
                continue
            if plant.wrong:
                margins = found.margins.get(name, {})
                shares = [margins[row.kind].share] if row.kind in margins and margins[row.kind].share > 1 else []
            else:
                shares = [e.share for e in found.errors(plant, row.kind)]
            x = [min(max(share, 1e-3), 1e9) for share in shares]
            y = at + (0.15 if plant.wrong else -0.15)
            axes.plot(x, [y] * len(x), "|", ms=8, color="tab:red" if plant.wrong else "tab:green")
    axes.axvline(1, color="black", lw=1)
    axes.set(xscale="log", xlabel="error, as a share of what is allowed", ylim=(-0.6, len(table) - 0.4))
    axes.set_yticks(range(len(table)), [f"{row.op}, {row.kind}" for row in reversed(table)])
    axes.plot([], [], "|", color="tab:green", label="correct variants, each seed")
    axes.plot([], [], "|", color="tab:red", label="bugs that errors give away")
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
