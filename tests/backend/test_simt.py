"""The simulated device catches kernels that are wrong on purpose, and passes right ones (tests/simt/planted.cpp)."""

from __future__ import annotations

import concurrent.futures
import functools
import platform
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from checkout import ROOT, attempt, run

SOURCE = ROOT / "tests/simt/planted.cpp"
RIGHT = ("rotate", "rotate_blocks", "lanes", "tiles_f32", "tiles_bf16", "tiles_f16", "counter")
SEEDS = ("0", "1", "2", "3")
RACES = ("missing_barrier", "reused_array", "lockstep", "shuffle_order", "blocks", "late_blocks")
DEFINES = ("-DSBHAL_GPU", "-DSBHAL_ISA=gpu", "-DSBHAL_ISA_LEVEL=0")
SIM, MACA = (f"-I{ROOT / 'backends' / folder}" for folder in ("sim", "maca"))


@dataclass(frozen=True)
class Outcome:
    status: int
    text: str

    def names(self, name: str, *, every: bool = True) -> bool:
        """Whether the report names the lines marked ``<name>``; all of them, or any."""
        marked = [i for i, line in enumerate(SOURCE.read_text().splitlines(), 1) if line.endswith(f"// <{name}>")]
        assert marked
        named = [re.search(rf"planted\.cpp:{line}\b", self.text) is not None for line in marked]
        return all(named) if every else any(named)


@dataclass(frozen=True)
class Program:
    path: Path

    @property
    def executor(self) -> list[Path]:
        """The object files but the planted kernels'."""
        return [o for o in self.path.parent.glob("*.o") if o.stem != "planted"]

    def __call__(self, name: str, **environment: str) -> Outcome:
        done = attempt(self.path, name, cwd=ROOT, ASAN_OPTIONS="detect_leaks=0", **environment)
        return Outcome(done.returncode, done.stdout)


def common_flags(wave: int) -> list[str]:
    flags = ["-std=c++17", "-O1", "-g1", "-fopenmp", "-Wno-unknown-pragmas", f"-DSBHAL_SIMT_WAVE={wave}"]
    return [*flags, *DEFINES, f"-I{ROOT / 'csrc'}", *(["-march=x86-64-v3"] if platform.machine() == "x86_64" else [])]


def compile_all(folder: Path, wave: int, kernels: tuple[str, ...] = (), executor: tuple[str, ...] = ()) -> Program:
    """Builds the planted kernels and the executor, each with flags of its own."""
    others = [*ROOT.glob("csrc/simt/*.cpp"), ROOT / "csrc/core/check.cpp"]
    sources = {SOURCE: kernels, **dict.fromkeys(others, executor)}

    def build(item: tuple[Path, tuple[str, ...]]) -> Path:
        source, flags = item
        run("g++", *common_flags(wave), SIM, *flags, "-c", source, "-o", folder / f"{source.stem}.o")
        return folder / f"{source.stem}.o"

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources.items()))
    run("g++", "-fopenmp", *kernels, *objects, "-o", folder / "planted")
    return Program(folder / "planted")


Build = Callable[[str, int], Program]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the planted kernels ``plain``, or for a sanitizer: ``address`` or ``thread``; each once a session."""

    @functools.cache
    def build(mode: str, wave: int) -> Program:
        folder = tmp_path_factory.mktemp(f"{mode}{wave}")
        if mode == "plain":
            return compile_all(folder, wave)
        kernels = (f"-fsanitize={mode}", "-Wno-tsan")
        program = compile_all(folder, wave, kernels, kernels if mode == "address" else ("-DSBHAL_SIMT_TSAN=1",))
        if "unexpected memory mapping" in program("rotate").text:
            pytest.skip(f"the {mode} sanitizer does not run with this system's memory layout")
        return program

    return build


each_wave = pytest.mark.parametrize("wave", [32, 64])


@each_wave
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass_in_any_order(built: Build, wave: int, name: str) -> None:
    for seed in SEEDS:
        assert built("plain", wave)(name, SBHAL_SIMT_SEED=seed) == Outcome(0, "right\n")


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass_under_sanitizers(built: Build, name: str) -> None:
    assert built("address", 64)(name) == Outcome(0, "right\n")
    assert built("thread", 32)(name, SBHAL_SIMT_MAX_BLOCKS="8") == Outcome(0, "right\n")


@pytest.mark.parametrize("name", RACES)
def test_races_are_found(built: Build, name: str) -> None:
    outcome = built("thread", 32)(name)
    assert "ThreadSanitizer: data race" in outcome.text
    assert outcome.names(name)


@each_wave
@pytest.mark.parametrize("name", ["missing_barrier", "lockstep", "uninitialised"])
def test_what_no_thread_wrote_is_not_a_number(built: Build, wave: int, name: str) -> None:
    assert re.match(r"wrong: element \d+ is -?nan", built("plain", wave)(name, SBHAL_SIMT_SEED="1").text)


@each_wave
def test_results_of_a_race_depend_on_the_order(built: Build, wave: int) -> None:
    assert len({built("plain", wave)("reused_array", SBHAL_SIMT_SEED=seed).text for seed in SEEDS}) > 1


FAULTS = {
    "shared_bounds": "memory behind the shared array of planted.cpp:",
    "too_much_shared": "64000 bytes of shared memory or more, devices give 49152",
    "barrier_divergence": "threads of a block are at different barriers",
    "wave_divergence": "lanes of a wavefront are at different operations",
    "operation_divergence": "lanes of a wavefront are at different operations",
    "returned_lane": "a thread returned while others wait for it",
    "returned_thread": "a barrier after threads have returned",
    "deadlock": "threads wait for ever",
    "far_lane": "a shuffle reads lane",
}


def assert_named(outcome: Outcome, name: str, fault: str = "", *, every: bool = True) -> None:
    """The fault, its lines, and that later launches work."""
    assert outcome.text.startswith(f"error: {name}: block 0 of {name}: {fault}")
    assert outcome.names(name, every=every)
    assert outcome.text.endswith("right\nright\nright\nrecovered\n")


@each_wave
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_and_survived(built: Build, wave: int, name: str) -> None:
    assert_named(built("plain", wave)(name), name, FAULTS[name], every=name != "shared_bounds")


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "shared_bounds"])
def test_fibers_left_behind_do_not_disturb_the_address_sanitizer(built: Build, name: str) -> None:
    assert_named(built("address", 64)(name), name, FAULTS[name])


@each_wave
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", ["barrier_divergence", "wave_divergence", "returned_lane", "returned_thread", "deadlock"]
)
def test_divergence_is_found_in_any_order(built: Build, wave: int, seed: str, name: str) -> None:
    assert_named(built("plain", wave)(name, SBHAL_SIMT_SEED=seed), name, every=False)


@pytest.mark.parametrize("name", ["global_write", "global_read", "workspace_bounds", "shared_bounds", "host_read"])
def test_addresses_are_checked(built: Build, name: str) -> None:
    outcome = built("address", 64)(name)
    assert "ERROR: AddressSanitizer" in outcome.text
    assert outcome.names(name, every=False)


@each_wave
def test_writes_beside_tensors_are_errors(built: Build, wave: int) -> None:
    beside = "error: {0}: memory beside {1} was written\nright\nright\nright\nrecovered\n"
    assert built("plain", wave)("global_write").text == beside.format("global_write", "argument 2 of the call")
    assert built("plain", wave)("workspace_bounds").text == beside.format("workspace_bounds", "the workspace")


@each_wave
@pytest.mark.parametrize("name", ["global_read", "host_read"])
def test_touching_what_is_not_the_kernels_crashes(built: Build, wave: int, name: str) -> None:
    assert built("plain", wave)(name).status == -signal.SIGSEGV


def test_a_wavefront_of_64_needs_wide_masks(built: Build) -> None:
    assert built("plain", 32)("mask32").text == "right\n"
    assert built("plain", 64)("mask32").text == "wrong: element 0 is 0, expected 32\n"


def test_a_wavefront_of_64_is_no_two_of_32(built: Build) -> None:
    assert built("plain", 32)("wave32").text == "right\n"
    outcome = built("plain", 64)("wave32")
    assert outcome.text.startswith("error: ")
    assert outcome.names("wave32")


def test_the_unit_of_consecutive_k(built: Build, tmp_path: Path) -> None:
    executor, standin = built("plain", 64).executor, f"{MACA}/standin"
    run("g++", *common_flags(64), MACA, standin, SOURCE, *executor, "-o", tmp_path / "planted")
    for name in ("tiles_bf16", "tiles_f16", "lanes"):
        assert Program(tmp_path / "planted")(name) == Outcome(0, "right\n")


def test_blocks_can_be_left_out(built: Build) -> None:
    outcome = built("plain", 32)("rotate_blocks", SBHAL_SIMT_MAX_BLOCKS="3")
    assert outcome.text == f"wrong: element {3 * 256} is 0, expected 2\n"


def test_recorded_calls_run_without_python(built: Build, tmp_path: Path) -> None:
    calls, driver, kernel = (
        tmp_path / "calls",
        ROOT / "tests/simt/replay.cpp",
        ROOT / "csrc/ops/neurons/lif_scan_gpu.hip",
    )
    run(sys.executable, ROOT / "tests/simt/record.py", calls, "lif_scan", "--cases", "2", "--dtype", "float32")
    flags = (*common_flags(32), SIM, "-fsanitize=thread", "-Wno-tsan")
    run(
        "g++",
        *flags,
        "-x",
        "c++",
        driver,
        kernel,
        "-x",
        "none",
        *built("thread", 32).executor,
        "-o",
        tmp_path / "replay",
    )
    text = run(tmp_path / "replay", calls, SBHAL_SIMT_MAX_BLOCKS="2")
    assert text == "lif_scan: ok\nlif_scan: ok\n"
