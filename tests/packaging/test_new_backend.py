"""Packages that ``sbhal new-backend`` writes, and the two examples that began as such."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import tomllib
import torch
from typer.testing import CliRunner

from checkout import ROOT, attempt, project_files, run
from spikingbrain_hal import Backend, register_backend, unregister_backend, use_backend
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.cli.new_backend import STYLES, write_package
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.run.suite import problems_of
from spikingbrain_hal.conformance.run.target import open_target
from spikingbrain_hal.conformance.run.worker import Session
from spikingbrain_hal.conformance.verdict.record import BACKEND, Report, Status
from spikingbrain_hal.declare.registry import OPERATORS

COMMAND = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
EXAMPLES = {"scalar": "host", "numpy": "python"}
COMMENT = {".h": "//", ".py": "#", ".toml": "#", ".txt": "#", ".yml": "#", "": "#"}


def code_lines(folder: Path) -> int:
    """Lines of everything but the README that are neither blank nor a comment."""
    lines = [
        line.strip()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".md"
        for line in path.read_text().splitlines()
        if not line.strip().startswith(COMMENT[path.suffix])
    ]
    return sum(bool(line) for line in lines)


@pytest.mark.parametrize("style", STYLES)
def test_a_package_is_small_and_in_order(style: str, tmp_path: Path) -> None:
    written = write_package("acme", style, tmp_path / "package")
    assert {p.relative_to(tmp_path / "package") for p in tmp_path.rglob("*") if p.is_file()} == set(written)
    assert code_lines(tmp_path) < 120
    run("ruff", "check", "--isolated", "--line-length", "120", ".", cwd=tmp_path)
    run("ruff", "format", "--isolated", "--check", "--line-length", "120", ".", cwd=tmp_path)
    settings = tomllib.loads((tmp_path / "package/pyproject.toml").read_text())
    assert settings["project"]["entry-points"]["spikingbrain_hal.backends"] == {"acme": "sbhal_acme.backend:backend"}
    tomllib.loads((tmp_path / "package/waivers.toml").read_text())
    for path in written:
        text = (tmp_path / "package" / path).read_text()
        assert "{{" not in text
        assert "{% " not in text
        assert text == "" or text.strip() + "\n" == text
        assert all(len(line) <= 130 for line in text.splitlines()), path


def test_the_tutorial_counts_right(tmp_path: Path) -> None:
    write_package("acme", "host", tmp_path / "package")
    assert f"{code_lines(tmp_path)} lines of code" in (ROOT / "docs/tutorial.md").read_text()


@pytest.mark.parametrize(("style", "built_in"), [("cuda", "cuda"), ("hip", "rocm")])
def test_the_alias_header_begins_as_that_of_a_built_in_backend(style: str, built_in: str, tmp_path: Path) -> None:
    write_package("acme", style, tmp_path / "package")
    headers = (tmp_path / "package/vendor.h", ROOT / f"backends/{built_in}/vendor.h")
    code = [path.read_text().split("#pragma once")[1] for path in headers]
    assert code[0] == code[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("9lives", "--style", "host"), "NAME is '9lives', expected a lower-case letter"),
        (("Acme", "--style", "host"), "NAME is 'Acme'"),
        (("ac-me", "--style", "host"), "NAME is 'ac-me'"),
        (("a_", "--style", "python"), "NAME is 'a_', expected a lower-case letter and then"),
        (("cpu", "--style", "host"), "NAME is 'cpu', which is taken"),
        (("reference", "--style", "python"), "NAME is 'reference', which is taken"),
        (("acme", "--style", "opencl"), "--style is 'opencl', expected one of host, cuda, hip, python"),
        (("acme", "--style", "host", "--device-type", "cuda"), "expected cpu for style host"),
        (("acme", "--style", "hip", "--device-type", "cpu"), "expected cuda for style hip"),
        (("acme", "--style", "python", "--device-type", "npu"), "'npu', expected cpu or cuda for style python"),
    ],
)
def test_wrong_arguments_write_nothing(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = COMMAND.invoke(app, ["new-backend", *arguments, "--out", str(tmp_path / "package")])
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        done = COMMAND.invoke(app, ["new-backend", "acme", "--style", "host", "--out", str(out)])
        assert done.exit_code == 2
        assert "expected a folder that is empty or not there" in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    out = tmp_path / "mine.txt" / "package"
    done = COMMAND.invoke(app, ["new-backend", "acme", "--style", "host", "--out", str(out)])
    assert done.exit_code == 2
    assert f"--out {out} cannot be written: [Errno" in done.output


def test_the_command_says_what_was_written_and_what_comes_next(tmp_path: Path) -> None:
    done = COMMAND.invoke(app, ["new-backend", "acme", "--style", "python", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"acme serves 0 of {len(OPERATORS)} operators" in done.output
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or str(path) in done.output


@pytest.fixture
def imported() -> Iterator[object]:
    """Imports a package from its folder, and takes its backend's registration back."""
    before, modules, names = list(sys.path), set(sys.modules), []

    def load(folder: Path, name: str) -> Backend:
        sys.path.insert(0, str(folder / "src"))
        found: Backend = import_module(f"sbhal_{name}.backend").backend
        register_backend(found)
        names.append(name)
        return found

    yield load
    sys.path[:] = before
    for name in names:
        unregister_backend(name)
    for module in set(sys.modules) - modules:
        if module.startswith("sbhal_"):
            del sys.modules[module]


def test_a_fresh_package_serves_nothing_and_does_not_pass(imported, tmp_path: Path) -> None:
    write_package("acme", "python", tmp_path)
    backend = imported(tmp_path, "acme")
    assert backend.probe() is None
    with use_backend("acme"):
        session = Session(open_target("acme"), seed=0)
        records = [session.run(item) for item in plan("quick", ["spike_expand"])]
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    records.append(replace(records[0], op=BACKEND, status=Status.PASS))  # that it loads is nothing to pass for
    problems = problems_of(session.target.opened(), records)
    assert problems == ["no case of an operator passed"]
    assert not Report({}, records, problems=problems).passed


@pytest.mark.parametrize("style", ["host", "cuda", "hip"])
def test_a_package_that_was_not_built_says_so(style: str, imported, tmp_path: Path) -> None:
    write_package("acme", style, tmp_path)
    assert imported(tmp_path, "acme").probe() == "not built; reinstall what holds sbhal_acme"


def test_a_package_in_python_for_devices_asks_torch_for_one(imported, monkeypatch, tmp_path: Path) -> None:
    write_package("acme", "python", tmp_path, "cuda")
    run("ruff", "check", "--isolated", "--select", "E,F,I", "--line-length", "120", ".", cwd=tmp_path)
    backend = imported(tmp_path, "acme")
    assert backend.device_type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.probe() == "torch sees no cuda device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.probe() is None


@pytest.mark.usefixtures("one_thread")
def test_the_example_in_python_keeps_every_promise(imported) -> None:
    imported(ROOT / "examples/backends/numpy", "numpy")
    with use_backend("numpy"):
        session = Session(open_target("numpy"), seed=0)
        assert set(session.target.kernels) == {"spike_expand", "spike_collapse"}
        records = [session.run(item) for item in plan("quick", ["spike_expand", "spike_collapse"])]
    assert [r.message for r in records if r.status != Status.PASS] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_what_the_command_writes_and_kernels(name: str, tmp_path: Path) -> None:
    folder = Path("examples/backends", name)
    written = write_package(name, EXAMPLES[name], tmp_path)
    held = {path.relative_to(folder) for path in project_files() if path.is_relative_to(folder)}
    assert set(written) <= held
    changed = {str(p) for p in written if (tmp_path / p).read_text() != (ROOT / folder / p).read_text()}
    added = {str(p) for p in held - set(written)}
    assert (
        changed | added
        == {
            "scalar": {"CMakeLists.txt", "kernels/lif_scan.cpp", "kernels/spike_encode.cpp"},
            "numpy": {"src/sbhal_numpy/kernels.py"},
        }[name]
    )


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one project after another: CMake looks at the compiler once."""
    return tmp_path_factory.mktemp("configured")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("sbhal_add_backend(acme DSP DESTINATION x)", "'acme' is DSP, expected HOST, GPU or SIMULATED"),
        ("sbhal_add_backend(acme HOST)", "'acme', which is HOST, needs DESTINATION"),
        ("sbhal_add_backend(acme GPU DESTINATION x FLAGS -x cu)", "which is GPU, needs COMPILER"),
        ("sbhal_add_backend(acme SIMULATED DESTINATION x)", "which is SIMULATED, needs WAVE"),
        ("sbhal_add_backend(acme SIMULATED DESTINATION x WAVE 16)", "has a WAVE of 16, expected 32 or 64"),
        (
            'set(SBHAL_CPU_ISAS "avx2;avx12")\nsbhal_add_backend(acme HOST EVERY_ISA DESTINATION x)',
            "no instruction set 'avx12'. Did you mean 'avx2'? Known ones: portable, avx2, avx512, avx512_bf16.",
        ),
        ("sbhal_add_backend(acme HOST DESTINATION x SHARED all)", "arguments that mean nothing: SHARED;all"),
        (
            "sbhal_add_backend(acme HOST DESTINATION x)\nsbhal_use_shared_sources(acme)",
            "sbhal_use_shared_sources: 'acme' gets no kernels; name operators, or ALL.",
        ),
        ("sbhal_use_shared_sources(acme ALL)", "there is no backend 'acme'; sbhal_add_backend comes first"),
        (
            "sbhal_add_backend(acme HOST DESTINATION x)\nsbhal_use_shared_sources(acme atention)",
            "no kernels of 'atention'. Did you mean 'attention'? Known operators: attention, gated_linear_attention,",
        ),
    ],
)
def test_wrong_calls_of_the_build_are_refused(call: str, message: str, configured: Path) -> None:
    (configured / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(acme LANGUAGES CXX)\nset(PYBIND11_FINDPYTHON ON)\n"
        f'find_package(pybind11 CONFIG REQUIRED)\nset(SBHAL_CSRC "{ROOT}/csrc")\n'
        f'include("{ROOT}/cmake/backend.cmake")\n{call}\n'
    )
    pybind11 = run("python", "-m", "pybind11", "--cmakedir").strip()
    done = attempt("cmake", "-G", "Ninja", "-S", configured, "-B", configured / "build", f"-Dpybind11_DIR={pybind11}")
    assert done.returncode != 0
    assert message in " ".join(done.stdout.split())
