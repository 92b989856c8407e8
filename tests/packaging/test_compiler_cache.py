"""The compiler cache of cmake/cache.cmake: copies of a project share it, and a build never needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from checkout import ROOT, attempt, run

pytestmark = pytest.mark.skipif(not shutil.which("ccache"), reason="ccache is not installed")
PROJECT = f"""cmake_minimum_required(VERSION 3.20)
project(cached LANGUAGES CXX)
include("{ROOT}/cmake/cache.cmake")
add_library(cached STATIC ${{CMAKE_SOURCE_DIR}}/one.cpp)
target_include_directories(cached PRIVATE ${{CMAKE_SOURCE_DIR}})
target_compile_options(cached PRIVATE -g1)
add_custom_command(OUTPUT two.o COMMAND ${{SBHAL_LAUNCH_GPU_COMPILER}} ${{CMAKE_CXX_COMPILER}} -MD -MF two.d
                   -c ${{CMAKE_SOURCE_DIR}}/two.cpp -o two.o VERBATIM)
add_custom_target(two ALL DEPENDS two.o)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, whatever this machine's settings are."""
    for name in ("CCACHE_BASEDIR", "CCACHE_DISABLE", "CCACHE_NOHASHDIR", "CMAKE_CXX_COMPILER_LAUNCHER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CCACHE_CONFIGPATH", str(tmp_path / "no.conf"))
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(folder: Path, *options: str) -> str:
    """Builds a copy of the project and returns what was launched."""
    folder.mkdir()
    (folder / "one.h").write_text("int two();\n")
    (folder / "one.cpp").write_text('#include "one.h"\nint one() { return two(); }\n')
    (folder / "two.cpp").write_text("int two() { return 2; }\n")
    (folder / "CMakeLists.txt").write_text(PROJECT)
    run("cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build", *options)
    return run("cmake", "--build", folder / "build", "--verbose")


def hits_and_misses() -> tuple[int, int]:
    counts = dict(line.split("\t") for line in run("ccache", "--print-stats").splitlines())
    return int(counts["direct_cache_hit"]) + int(counts["preprocessed_cache_hit"]), int(counts["cache_miss"])


def test_a_copy_compiles_nothing_anew(tmp_path: Path) -> None:
    build(tmp_path / "first")
    hits, misses = hits_and_misses()
    build(tmp_path / "second")
    assert hits_and_misses() == (hits + misses, misses)
    assert misses == 3  # and the trial when it is configured


def test_a_build_can_go_without(tmp_path: Path) -> None:
    assert "ccache" not in build(tmp_path / "off", "-DSBHAL_CCACHE=OFF")


def test_a_launcher_that_was_chosen_stays(tmp_path: Path) -> None:
    launched = build(tmp_path / "chosen", "-DCMAKE_CXX_COMPILER_LAUNCHER=nice")
    assert [line for line in launched.splitlines() if "nice" in line and "one.cpp" in line and "ccache" not in line]


def test_a_cache_that_cannot_be_written_is_not_used(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file, not a folder")
    assert attempt("ccache", "c++", "-x", "c++", "-c", "/dev/null", "-o", tmp_path / "x.o").returncode != 0
    assert "ccache" not in build(tmp_path / "unwritable")
