"""Each instruction set asks the processor for everything that its compiler flags let the compiler use."""

import platform
import re
from pathlib import Path

import pytest

from checkout import ROOT, attempt, run
from spikingbrain_hal.backend.gpu import X86_64_V3

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one instruction set")

CMAKE = (ROOT / "cmake/kernels.cmake").read_text()
COMPILE = ("c++", "-std=c++17", f"-I{ROOT / 'csrc/core'}", f"-I{ROOT / 'csrc'}")
# The compiler's macros that stand for instructions under another name than /proc/cpuinfo's.
NAMES = {
    "__SSE3__": "pni",
    "__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16": "cx16",
    "__LZCNT__": "abm",
    "__BMI__": "bmi1",
    "__LAHF_SAHF__": "lahf_lm",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BF16__": "avx512_bf16",
    "__CRC32__": "sse4_2",
}
NO_INSTRUCTIONS = r"__(?:FP_FAST_\w+|BIGGEST_ALIGNMENT__|EVEX\w+__|k8(?:__)?)"
PROGRAM = """
#include "isa.cpp"
#include <cstdio>
int main() {
  for (const auto& level : sbhal::levels())
    for (const auto& f : level.features) std::printf("%s %s %d\\n", level.name, f.name, sbhal::has(f));
}
"""


def flags_of(level: str) -> list[str]:
    """What the build tells the compiler."""
    words = re.search(rf"set\(flags_{level} ([^)]*)\)", CMAKE)
    assert words, level
    return re.sub(r"\$\{flags_(\w+)\}", lambda other: " ".join(flags_of(other[1])), words[1]).split()


def macros(*flags: str) -> set[str]:
    return {line.split()[1] for line in run("c++", *flags, "-dM", "-E", "-x", "c++", "/dev/null").splitlines()}


def instructions(*flags: str) -> set[str]:
    """What the compiler may use beyond any x86-64, in the words of /proc/cpuinfo."""
    added = {m for m in macros(*flags) - macros() if not re.fullmatch(NO_INSTRUCTIONS, m)}
    return {NAMES.get(m, m.strip("_").lower()) for m in added}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    """By level, what csrc/core/isa.cpp asks for, and whether this processor says that it has it."""
    folder = tmp_path_factory.mktemp("isa")
    (folder / "main.cpp").write_text(PROGRAM)
    run(*COMPILE, folder / "main.cpp", "-o", folder / "main")
    lines = [line.split() for line in run(folder / "main").splitlines()]
    return {level: {name: has == "1" for at, name, has in lines if at == level} for level, _, _ in lines}


def test_levels_ask_for_what_the_compiler_uses(asked):
    assert [*asked] == ["avx2", "avx512", "avx512_bf16"]
    so_far: set[str] = set()
    for level, features in asked.items():
        so_far |= features.keys()
        assert so_far == instructions(*flags_of(level)), level


def test_the_processor_is_understood(asked):
    """Each bit is the one that the system means by the name."""
    listed = set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[0].split())
    for features in asked.values():
        assert {name for name, has in features.items() if has} == features.keys() & listed


def test_simulated_devices_ask_for_what_the_compiler_uses():
    flags = re.search(r"target_compile_options\(\$\{target\} PRIVATE (-march=\S+)\)", CMAKE)
    assert flags
    assert set(X86_64_V3) == instructions(flags[1])


@pytest.mark.parametrize(("saved", "best"), [(0x3, 0), (0x7, 1), (0x67, 1)])
def test_a_level_without_its_registers_is_not_taken(asked, saved, best, tmp_path):
    """What the processor has and the system does not save between processes cannot be used."""
    if not all(asked["avx2"].values()):
        pytest.skip("this processor has the portable level only")
    text = (ROOT / "csrc/core/isa.cpp").read_text()
    changed = text.replace("return static_cast<uint64_t>(high) << 32 | low;", f"return {saved};")
    assert changed != text
    (tmp_path / "main.cpp").write_text(f"{changed}\nint main() {{ return sbhal::detected_isa(); }}\n")
    run(*COMPILE, tmp_path / "main.cpp", "-o", tmp_path / "main")
    assert attempt(tmp_path / "main").returncode == best
