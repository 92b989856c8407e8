"""Follows docs/add-an-operator.md in a copy of the repository: five files, and the suite accepts the operator."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest

from checkout import ROOT, Environment, copy_project, run

GUIDE = ROOT / "docs/add-an-operator.md"
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@invalid")
# One instruction set and one wavefront: all kernels are there, as rules of the layout want, and the cache has most.
FEW = [
    f"--config-settings={setting}"
    for setting in (
        "sbhal.backends=cpu;sim",
        "cmake.define.SBHAL_CPU_ISAS=portable",
        "cmake.define.SBHAL_SIM_WAVES=32",
    )
]
GRADIENT = """
import torch, spikingbrain_hal as hal
hal.use_backend("cpu")
x = torch.randn(3, 2, requires_grad=True)
y = hal.ops.leaky_sum(x, decay=0.5)
y[2].sum().backward()
assert torch.allclose(y[2], 0.25 * x[0] + 0.5 * x[1] + x[2])
print(x.grad[:, 0].tolist())
"""


def written_files() -> dict[str, str]:
    """The files that the guide tells to write: a path alone on a line, then a code block."""
    text = GUIDE.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", text, re.M | re.S))


@pytest.mark.slow
def test_guide_adds_an_operator(environment: Environment, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project", kernels="")
    run("git", "init", "-q", cwd=project)
    run("git", "add", "-A", cwd=project)
    run(*GIT, "commit", "-qm", "before", cwd=project)
    for name, text in written_files().items():
        (project / name).write_text(text, encoding="utf-8")
    status = run("git", "status", "--porcelain", "--untracked-files=all", cwd=project).split()
    assert status[1::2] == [
        "csrc/ops/neurons/leaky_sum.h",
        "csrc/ops/neurons/leaky_sum_cpu.cpp",
        "csrc/ops/neurons/leaky_sum_gpu.hip",
        "spikingbrain_hal/conformance/operators/leaky_sum.py",
        "spikingbrain_hal/ops/neurons/leaky_sum.py",
    ]

    environment.install("-e", project, *FEW, cwd=tmp_path)
    assert environment.evaluate(GRADIENT, tmp_path) == "[0.25, 0.5, 1.0]"
    for backend in ("cpu", "sim"):
        suite = (environment.folder / "bin/sbhal", "conformance", "--backend", backend, "--op", "leaky_sum")
        run(*suite, "--profile", "quick", "--out", backend, cwd=tmp_path, PYTHONSAFEPATH="1")
        assert "leaky_sum_backward" in (tmp_path / backend / "report.json").read_text()
    _make(environment, project, "docs", "check")


def _make(environment: Environment, project: Path, *targets: str) -> None:
    """Runs targets as if the environment were the one that make has installed."""
    for tool in ("ruff", "mypy", "clang-format"):
        (environment.folder / "bin" / tool).symlink_to(Path(sysconfig.get_path("scripts"), tool))
    installed = [f"--old-file={environment.folder}/{stamp}" for stamp in (".installed", ".dev")]
    run("make", *targets, f"VENV={environment.folder}", *installed, cwd=project)


def test_guide_is_formatted(tmp_path: Path) -> None:
    for name, text in written_files().items():
        path = tmp_path / Path(name).name
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".py":
            run("ruff", "format", "--check", "--line-length", "120", path)
            run("ruff", "check", "--line-length", "120", path)
        else:
            run("clang-format", f"--style=file:{ROOT}/.clang-format", "--dry-run", "--Werror", path)
