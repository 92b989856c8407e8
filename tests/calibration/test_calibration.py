"""``python -m calibration``, and the page it left in docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibration.__main__ import app
from calibration.planted import PLANTS, misbehaviour
from checkout import ROOT
from seeds import SEED
from spikingbrain_hal.backend import Kernel

pytestmark = pytest.mark.usefixtures("one_thread")


def test_committed_page_names_every_plant_and_no_other() -> None:
    page = (ROOT / "docs/calibration.md").read_text(encoding="utf-8")
    named = {f"{op}/{name}" for op, name in re.findall(r"^\| (\w+) \| `(\w+)`: ", page, re.M)}
    assert named == PLANTS.keys()
    assert all(f"`{p.name}`: {p.sentence}" in page for p in PLANTS.values())
    assert (ROOT / "docs/calibration.svg").read_text(encoding="utf-8").count("<svg ") == 1


def run_command(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, arguments)


@pytest.mark.usefixtures("own_selection")
def test_command_writes_page_and_figure(tmp_path: Path) -> None:
    done = run_command("--op", "spike_collapse", "--seeds", "2", "--first", str(SEED), "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "PASS" in done.output
    page = (tmp_path / "calibration.md").read_text()
    bugs = sum(p.op == "spike_collapse" and p.wrong for p in PLANTS.values())
    assert f"{2 * bugs} of {2 * bugs} trials of {bugs} bugs ended in rejection" in page
    assert (tmp_path / "calibration.svg").exists()


@pytest.mark.usefixtures("own_selection")
def test_command_fails_where_a_bug_is_accepted(tmp_path: Path) -> None:
    @misbehaviour("spike_collapse", "Nothing is wrong with it.", check="refuses")
    def harmless(kernel: Kernel) -> Kernel:
        return kernel

    try:
        done = run_command("--op", "spike_collapse", "--seeds", "1", "--out", str(tmp_path))
    finally:
        del PLANTS["spike_collapse/harmless"]
    assert done.exit_code == 1
    assert "wrong verdict on spike_collapse/harmless" in done.output
    assert "FAIL" in done.output


@pytest.mark.usefixtures("own_selection")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--op", "spike_colapse"), "no operator 'spike_colapse'"), (("--import", "no_such_module"), "no_such_module")],
)
def test_command_says_why_nothing_was_run(arguments: tuple[str, ...], message: str) -> None:
    done = run_command(*arguments)
    assert done.exit_code == 2
    assert message in done.output
