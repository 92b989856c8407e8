"""Installing: what a wheel and a source distribution hold, each route to a build, and what is refused."""

from __future__ import annotations

import re
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import spikingbrain_hal
from checkout import ROOT, Environment, attempt, build_wheel, copy_project, run

PIP = ("python", "-m", "pip", "--disable-pip-version-check")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")
IMPORTS = (
    "import spikingbrain_hal, spikingbrain_hal.calls.selection as s;"
    "print(spikingbrain_hal.__version__, s.current('cpu').name, *s.current('cpu').kernels)"
)
EXPECTED = f"{spikingbrain_hal.__version__} cpu spike_encode"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds."""
    return build_wheel(project, tmp_path_factory.mktemp("wheel"))


def members(wheel: Path) -> set[str]:
    return {re.sub(r"^.*?\.dist-info", "dist-info", name) for name in zipfile.ZipFile(wheel).namelist()}


def expected_members() -> set[str]:
    """Every Python file, stub, marker and template, at the place it is imported from."""
    kinds = (".py", ".pyi", ".typed", ".j2", ".json", ".html", ".css", ".svg")
    packages = {"spikingbrain_hal": "spikingbrain_hal", "backends": "spikingbrain_hal/backends"}
    return {
        f"{target}/{path.relative_to(ROOT / source)}"
        for source, target in packages.items()
        for path in (ROOT / source).rglob("*")
        if path.suffix in kinds and path.is_file()
    }


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    held = members(wheel)
    assert expected_members() <= held
    assert {"spikingbrain_hal/py.typed", "dist-info/licenses/LICENSE"} <= held
    assert "spikingbrain_hal/ops/__init__.pyi" in held
    strangers = {n for n in held if not n.startswith(("spikingbrain_hal/", "dist-info/"))}
    assert not strangers
    entries = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if "entry_p" in n))
    assert b"sbhal = spikingbrain_hal.cli:main" in entries
    assert b"cpu = spikingbrain_hal.backends.cpu.backend:backend" in entries


@pytest.mark.slow
def test_wheel_brings_what_backends_of_their_own_are_built_from(project: Path, wheel: Path) -> None:
    sources = [path.relative_to(project).as_posix() for path in (project / "csrc").rglob("*") if path.is_file()]
    cmake = [f"share/cmake/spikingbrain_hal/{path.name}" for path in (project / "cmake").iterdir()]
    headers = ["backends/cuda/vendor.h", "backends/rocm/vendor.h"]
    assert {f"spikingbrain_hal/{name}" for name in (*sources, *cmake, *headers)} <= members(wheel)
    assert "spikingbrain_hal/share/cmake/spikingbrain_hal/spikingbrain_halConfigVersion.cmake" in members(wheel)


@pytest.mark.slow
def test_native_module_links_no_framework(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        native = archive.extract(next(n for n in archive.namelist() if n.endswith(".so")), tmp_path)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", native))
    assert needed
    assert not [library for library in needed if re.search("torch|c10|cuda|hip", library)]


@pytest.mark.slow
def test_wheel_installs_and_runs(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    environment.install(wheel, cwd=tmp_path)
    assert environment.evaluate(IMPORTS, tmp_path) == EXPECTED


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(project: Path, wheel: Path, tmp_path: Path) -> None:
    run("python", "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, cwd=project)
    source = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"CMakeLists.txt", "setup.py", "LICENSE", "csrc/core/module.cpp", "cmake/suggest.cmake"} <= names
    run(*PIP, "wheel", source, *OFFLINE, "-w", tmp_path, cwd=tmp_path)
    assert members(next(tmp_path.glob("*.whl"))) == members(wheel)


@pytest.mark.slow
def test_editable_install(project: Path, environment: Environment, tmp_path: Path) -> None:
    environment.install("-e", project, cwd=tmp_path)
    assert environment.evaluate(IMPORTS, tmp_path) == EXPECTED
    where = environment.evaluate("import spikingbrain_hal; print(spikingbrain_hal.__file__)", tmp_path)
    assert Path(where) == project / "spikingbrain_hal/__init__.py"
    cmake_dir = run(environment.python, "-m", "spikingbrain_hal", "--cmakedir", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert (Path(cmake_dir.strip(), "backend.cmake")).exists()


@pytest.mark.slow
def test_setup_py_builds_the_same_wheel(project: Path, wheel: Path, environment: Environment, tmp_path: Path) -> None:
    compiler = sysconfig.get_config_var("CXX").split()[0]  # as pip's build takes: a cache goes by the name
    setup = ("setup.py", "bdist_wheel", "--dist-dir", tmp_path)
    run("python", *setup, cwd=project, SBHAL_BACKENDS="cpu", CXX=compiler)
    built = next(tmp_path.glob("*.whl"))
    ours = {name for name in members(built) if name != "dist-info/top_level.txt"}
    assert ours == members(wheel)
    environment.install(built, cwd=tmp_path)
    assert environment.evaluate(IMPORTS, tmp_path) == EXPECTED


@pytest.mark.parametrize("misspelt", ["cup", "cpuu", "CPU", "pcu"])
def test_misspelt_backend_is_refused_with_a_suggestion(misspelt: str, configured: Path) -> None:
    message = refusal(f"-DSBHAL_BACKENDS={misspelt}", configured)
    assert f"There is no backend '{misspelt}'. Did you mean 'cpu'?" in message


def test_unknown_backend_is_refused_with_the_known_ones(configured: Path) -> None:
    message = refusal("-DSBHAL_BACKENDS=cpu;tpv", configured)
    assert "There is no backend 'tpv'. Known backends: cpu, cuda, maca, rocm, sim." in message


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder for one refusal after another: CMake looks at the compiler once."""
    return tmp_path_factory.mktemp("configured")


def refusal(define: str, build: Path) -> str:
    done = attempt("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, define, f"-Dpybind11_DIR={pybind11_dir()}")
    assert done.returncode != 0
    return " ".join(done.stdout.split())


def pybind11_dir() -> str:
    return run("python", "-m", "pybind11", "--cmakedir").strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment_variables", "expected"),
    [
        (("--config-settings=sbhal.backends=cpuu",), {}, "Did you mean 'cpu'?"),
        ((), {"SBHAL_BACKENDS": "cup"}, "Did you mean 'cpu'?"),
        (("--config-settings=sbhal.backend=cpu",), {}, "sbhal.backends"),
    ],
)
def test_pip_passes_the_choice_on(
    project: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    environment_variables: dict[str, str],
    expected: str,
) -> None:
    command = (*PIP, "wheel", ".", *OFFLINE, "-w", tmp_path, *options)
    done = attempt(*command, cwd=project, **environment_variables)
    assert done.returncode != 0
    assert expected in " ".join(done.stdout.split())
    assert not list(tmp_path.glob("*.whl"))
