"""docs/tutorial.md does what it says: from an empty directory to a first operator that passes natively."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkout import Environment, build_wheel, copy_project
from tutorial import PAGE, Terminal, steps, words


@pytest.mark.slow
def test_the_tutorial_reaches_an_operator_that_passes(environment: Environment, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project", kernels="")
    wheel = build_wheel(project, tmp_path / "wheels", "--config-settings=sbhal.backends=")
    folder = tmp_path / "empty"
    folder.mkdir()
    terminal = Terminal(environment, wheel.parent, folder)
    for step in steps(PAGE.read_text(encoding="utf-8")):
        printed = terminal.follow(step)
        found = iter(words(printed))
        missing = [line for line in words(step.text) if line not in found]
        assert missing == [], f"{step.command}\n{printed}"

    for name in ("acme", "sketch"):
        report = json.loads((folder / f"sbhal-{name}/out/report/report.json").read_text())
        assert report["backend"]["name"] == name
        assert {o["op"]: o["verdict"] for o in report["operators"]} == {"spike_quantize": "pass"}


def test_the_tutorial_shows_what_its_commands_print() -> None:
    found = steps(PAGE.read_text(encoding="utf-8"))
    assert len([s for s in found if s.file]) == 3
    shown = {s.command: words(s.text) for s in found if s.command}
    assert all(lines for command, lines in shown.items() if command.startswith(("sbhal", "python try")))
