"""A report in terminals of many widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sample_reports import every_status, record, whole
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.cli.summary import print_summary
from spikingbrain_hal.conformance.verdict.record import Report, Status
from spikingbrain_hal.declare.registry import OPERATORS


def printed(found: Report, width: int) -> list[str]:
    text = io.StringIO()
    print_summary(Console(file=text, width=width, color_system=None), found)
    return text.getvalue().splitlines()


@pytest.mark.parametrize(("width", "columns"), [(120, 6), (80, 6), (60, 4), (45, 2)])
def test_names_of_operators_are_not_broken(width: int, columns: int) -> None:
    found = whole()
    found.records += [record(Status.UNSUPPORTED, "lif_scan")] * 2
    lines = printed(found, width)
    header, rule, *rows = lines[: 3 + len(OPERATORS)]
    words = ["operator", "verdict", "passed", "broken", "unsupported", "worst"]
    assert [word for word in words if word in header] == words[:columns]
    assert {row.split()[0] for row in rows} == {"backend", *OPERATORS}
    assert all(len(line) <= width for line in (header, rule, *rows))


def test_a_name_wider_than_the_terminal_is_whole() -> None:
    name = "x" * 50
    lines = printed(Report(whole().about, [record(Status.PASS, name)]), 40)
    assert sum(line.count("x") for line in lines[2:5]) == len(name)


def test_a_share_above_its_ceiling_is_marked() -> None:
    (line,) = (line for line in printed(every_status(), 80) if line.startswith("mistrusted"))
    assert line == "mistrusted: spike_encode at case in float32 takes 122 % of its ceiling, copy"


def test_names_of_operators_are_whole_in_their_list() -> None:
    done = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["ops"])
    listed = {line.split()[1] for line in done.output.splitlines() if line.startswith("│") and line[2] != " "}
    assert listed == {spec.name for spec in OPERATORS.values() if spec.forward is None}
