"""A report in one line, as a picture and as the JSON that badge services read."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..verdict.record import Report
from .claim import claim
from .page import template

COLOURS = {"green": "#2d7d46", "yellow": "#96700f", "red": "#b42318", "grey": "#5b6875"}
_SIZE, _MARGIN = 11, 6
_WIDE, _NARROW = "MWmw%@", "Iijlft.,:;|'!()[] 1"


class _Half(NamedTuple):
    text: str

    @property
    def width(self) -> int:
        """Pixels, margins included, near enough: the picture fits the text to them."""
        ems = sum(0.9 if c in _WIDE else 0.38 if c in _NARROW else 0.62 for c in self.text)
        return 2 * _MARGIN + round(_SIZE * ems)


def label(report: Report) -> str:
    """The left half: whose conformance this is."""
    return f"sbhal conformance, {report.about['backend']['name']}"


def colour(report: Report) -> str:
    """Red for anything broken, green only for a whole claim that nothing needs to be said beside."""
    found = claim(report)
    shown = found.standing
    if any(r.broken for r in report.records) or report.problems:
        return "red"
    if shown.level is None or found.provisos:
        return "grey"
    return "green" if len(shown.operators) == shown.of and not shown.waivers else "yellow"


def badge_json(report: Report) -> str:
    """The JSON of a badge endpoint, which services such as shields draw."""
    shown = {"schemaVersion": 1, "label": label(report), "message": str(claim(report)), "color": colour(report)}
    return json.dumps(shown, indent=1) + "\n"


def badge_svg(report: Report) -> str:
    """The badge as a picture.

    Raises:
        ModuleNotFoundError: jinja2 is missing; the message names the extra to install.
    """
    drawn: str = template("badge.svg.j2").render(
        left=_Half(label(report)),
        right=_Half(str(claim(report))),
        fill=COLOURS[colour(report)],
        size=_SIZE,
        margin=_MARGIN,
    )
    return drawn
