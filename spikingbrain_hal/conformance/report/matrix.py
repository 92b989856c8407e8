"""Several reports as one page: backends, operators and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..verdict.record import Cell, Report, group
from .claim import claim
from .page import by_column, template


def matrix(reports: Mapping[str, Report]) -> str:
    """One page of HTML that needs nothing else.

    Args:
        reports: By a name for where each comes from, which tells reports of one backend apart.

    Raises:
        ValueError: There are none.
        ModuleNotFoundError: jinja2 is missing; the message names the extra to install.
    """
    if not reports:
        raise ValueError("a matrix needs at least one report")
    found = list(reports.values())
    cells = [{op: by_column(rows) for op, rows in group(r.records, "op").items()} for r in found]
    page: str = template("matrix.html.j2").render(
        reports=list(reports.items()),
        claims=[claim(r) for r in found],
        rows=_rows(cells),
        cells=cells,
        versions=sorted({r.about["operator_set"]["version"] for r in found}),
    )
    return page


def _rows(cells: Sequence[Mapping[str, Mapping[str, Cell]]]) -> list[tuple[str, list[str]]]:
    """Every operator of any report, with the dtypes that it was tested at anywhere."""
    rows: dict[str, dict[str, None]] = {}
    for one in cells:
        for op, columns in one.items():
            rows.setdefault(op, {}).update(dict.fromkeys(columns))
    return [(op, list(columns)) for op, columns in rows.items()]
