"""Runs docs/tutorial.md: writes the files that it shows, types its commands, and compares what they print.

python tests/tutorial.py    # run it, and put what its commands print into the page
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT, Environment, attempt, build_wheel, copy_project, make_environment

PAGE = ROOT / "docs/tutorial.md"
BLOCK = re.compile(r"(?:^`(?P<file>[\w/.]+)`\n\n```\w+|^```console)\n(?P<text>.*?)^```$", re.M | re.S)
END = "-- status and folder:"
PROGRESS = re.compile(r"^(\d+) of (?!\1 )\d+ \w+ done, .*\n", re.M)


@dataclass
class Step:
    """A file that the page shows, or a command and what it prints.

    Attributes:
        place: Where in the page the text of the file, or of the output, begins and ends.
        text: That text.
        file: The file's path; empty for a command.
        command: The command; empty for a file.
    """

    place: tuple[int, int]
    text: str
    file: str = ""
    command: str = ""


def steps(page: str) -> list[Step]:
    """What the page tells to do, in order."""
    found = []
    for block in BLOCK.finditer(page):
        if block["file"]:
            found.append(Step(block.span("text"), block["text"], file=block["file"]))
            continue
        for part in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block["text"], re.M):
            start = block.start("text")
            found.append(Step((start + part.start(2), start + part.end(2)), part[2], command=part[1]))
    return found


class Terminal:
    """Types commands, each in the folder that the one before it left, in an environment that is active.

    Args:
        environment: The environment.
        wheels: Where pip finds the project; all else that the page installs is there.
        folder: Where to begin.
    """

    def __init__(self, environment: Environment, wheels: Path, folder: Path) -> None:
        self.folder, self.status = folder, 0
        self.variables = {
            "PATH": f"{environment.folder / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_ROOT_USER_ACTION": "ignore",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONPATH": "",
        }

    def type(self, command: str) -> str:
        """Runs a command and returns what it printed.

        Raises:
            AssertionError: It failed.
        """
        line = f'{command}\necho "{END} $?:$PWD"'
        printed, _, rest = attempt("bash", "-c", line, cwd=self.folder, **self.variables).stdout.rpartition(END)
        status, _, folder = rest.strip().partition(":")
        assert status == "0", f"{command}\n{printed}"
        self.folder = Path(folder)
        lines = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
        return PROGRESS.sub("", lines)  # how often it is said depends on the time that passes

    def follow(self, step: Step) -> str:
        """Writes the file or runs the command of a step; returns what stands in the page if all is as it says."""
        if step.command:
            return self.type(step.command)
        path = self.folder / step.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text, encoding="utf-8")
        return step.text


def words(output: str) -> list[str]:
    """The words of each line, with all numbers alike: times, seeds and counts of cases change."""
    letters = re.sub(r"\d+(\.\d+)?|[^\x20-\x7e\n]|\.{3,}", " ", output)
    return [" ".join(line.split()) for line in letters.splitlines() if line.strip()]


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(
            copy_project(folder / "project", kernels=""), folder / "wheels", "--config-settings=sbhal.backends="
        )
        (folder / "empty").mkdir()
        terminal = Terminal(make_environment(folder / "environment"), wheel.parent, folder / "empty")
        results = [(step, terminal.follow(step)) for step in steps(page)]
    for step, text in reversed(results):
        page = page[: step.place[0]] + text + page[step.place[1] :]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
