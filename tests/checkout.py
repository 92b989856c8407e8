"""Copies of the project, and environments to install them into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Runs a command to its end and returns what it printed.

    Raises:
        AssertionError: It failed; the message holds its output.
    """
    done = attempt(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def attempt(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """As :func:`run`, for a command that may fail."""
    scripts = sysconfig.get_path("scripts")
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=570,
    )


def project_files() -> list[Path]:
    """Every file that belongs to the project, relative to its root: what a clean clone would hold."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return [Path(name) for name in listed if (ROOT / name).is_file()]


def copy_project(target: Path, kernels: str = "spike_encode") -> Path:
    """Copies the project, with the kernels of one operator only so that it builds in seconds; all for ``""``."""
    for name in project_files():
        if name.is_relative_to("csrc/ops") and name.suffix != ".h" and not name.name.startswith(kernels):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def build_wheel(project: Path, folder: Path, *options: str) -> Path:
    """The wheel that pip builds of a project, without network access."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, *options, cwd=project)
    return next(folder.glob("*.whl"))


@dataclass(frozen=True)
class Environment:
    """A virtual environment that borrows this one's packages, but not the project installed in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def install(self, *what: str | Path, cwd: Path, **environment: str) -> str:
        """Installs with pip, without network access."""
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
        pip = (sys.executable, "-m", "pip", "--python", self.python)
        return run(*pip, "install", *options, *what, cwd=cwd, **environment)

    def evaluate(self, code: str, cwd: Path) -> str:
        """Runs Python code away from the checkout and returns what it printed."""
        return run(self.python, "-c", code, cwd=cwd, PYTHONSAFEPATH="1").strip()


def make_environment(folder: Path) -> Environment:
    """Creates an :class:`Environment`."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    made = Environment(folder)
    site = run(made.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # A folder that a .pth file names joins the path; the .pth files inside it, an editable install's too, don't run.
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for name in dict.fromkeys(entry for entry in sys.path if Path(entry).name == "site-packages"):
        for item in Path(name).iterdir():
            if "spikingbrain_hal" not in item.name and not (borrowed / item.name).exists():
                (borrowed / item.name).symlink_to(item)
    Path(site.strip(), "borrowed.pth").write_text(f"{borrowed}\n")
    return made
