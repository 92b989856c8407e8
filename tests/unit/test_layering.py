"""The rules of the layout: who may name whom, how large a file may grow, what belongs together.

Every rule is a function from a project's root to its violations, so that each can be shown to catch a planted one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkout import ROOT, project_files, run

Rule = Callable[[Path], list[str]]

VENDORS = "cuda|hip|rocm|amd|nvidia|metax|maca|mxcc|musa|intel|huawei|ascend|cambricon|apple|qualcomm|moore"
RUNTIMES = r"\b(?:cuda|hip|mc)_runtime|\b(?:cuda|hip|mc)[A-Z]\w+\(|\b(?:nvcc|hipcc|mxcc)\b"
LINE_LIMITS = {
    r"csrc/ops/\w+_cpu\.cpp": 250,
    r"csrc/ops/\w+_gpu\.hip": 400,
    r"csrc/.*\.h": 300,
    r"csrc/(?:core|gpu|simt)/.*\.(?:cpp|hip)": 300,
    r"backends/\w+/backend\.py": 250,
    r"backends/.*\.h": 150,
    r"(?:spikingbrain_hal|bench|examples)/.*\.py": 300,
    r"tests/.*\.py": 400,
    r"(?:.*/)?(?:CMakeLists\.txt|\w+\.cmake)": 200,
    r"setup\.py": 60,
}


def files(root: Path, *patterns: str) -> Iterator[tuple[Path, str]]:
    """The paths, relative to root, that match a pattern, and their text."""
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root), path.read_text(encoding="utf-8", errors="replace")


def matches(pattern: str, sources: Iterator[tuple[Path, str]]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in sources
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def vendor_words(root: Path) -> list[str]:
    """Kernels are for a kind of machine, never for a vendor's."""
    return matches(rf"(?i)(?<![a-z])(?:{VENDORS})(?![a-z])", files(root, "csrc/ops/*"))


def wavefront_sizes(root: Path) -> list[str]:
    """Wavefronts are 32 lanes on one device and 64 on the next: kernels use the dialect's words for them."""
    literal = r"[%/]\s*(?:32|64)\b|&\s*(?:31|63)\b|0xffffffff"
    bare = r"warpSize|__shfl|__ballot|__activemask|__syncwarp|__shared__"
    kernels = [f for f in files(root, "csrc/ops/*") if f[0].suffix == ".hip" or '#include "gpu/' in f[1]]
    return matches(rf"{literal}|{bare}", iter(kernels))


def references_between_backends(root: Path) -> list[str]:
    """A backend can be deleted without touching another."""
    names = sorted(path.name for path in (root / "backends").iterdir() if (path / "backend.py").exists())
    found = []
    for name in names:
        others = "|".join(other for other in names if other != name)
        if others:
            pattern = rf"backends[./](?:{others})\b|from \.+(?:{others})\b|\.\./(?:{others})/"
            code = (f for f in files(root, f"backends/{name}/**/*") if f[0].suffix != ".md")
            found += matches(pattern, code)
    return found


def named_runtimes(root: Path) -> list[str]:
    """Only backends/ and csrc/gpu know a device runtime."""
    return matches(RUNTIMES, files(root, "csrc/core/*", "csrc/ops/*", "spikingbrain_hal/**/*.py"))


def oversized_files(root: Path) -> list[str]:
    """Past these sizes a file is split."""
    found = []
    for path, text in files(root, "*", *(f"{f}/**/*.*" for f in ("csrc", "backends", "spikingbrain_hal", "tests"))):
        limits = [limit for pattern, limit in LINE_LIMITS.items() if re.fullmatch(pattern, path.as_posix())]
        lines = text.count("\n")
        if limits and lines > limits[0]:
            found.append(f"{path} has {lines} lines, at most {limits[0]}")
    return found


def unpaired_operators(root: Path) -> list[str]:
    """A declaration and its kernels share a base name; a gradient may have a file of its own."""
    declared = {path.stem.rstrip("_") for path in (root / "spikingbrain_hal/ops").glob("*.py")} - {"__init"}
    found = []
    for kind in ("_cpu.cpp", "_gpu.hip"):
        kernels = {path.name.removesuffix(kind) for path in (root / "csrc/ops").glob(f"*{kind}")}
        owners = {name if name in declared else name.removesuffix("_backward") for name in kernels}
        found += [f"{name}: no csrc/ops/{name}{kind}" for name in sorted(declared - owners)]
        found += [f"{name}{kind}: no declaration in spikingbrain_hal/ops" for name in sorted(owners - declared)]
    return found


PLANTED: list[tuple[Rule, str, str]] = [
    (vendor_words, "csrc/ops/x_cpu.cpp", "// as on ROCm\n"),
    (vendor_words, "csrc/ops/x.h", "int cuda_block;\n"),
    (wavefront_sizes, "csrc/ops/x_gpu.hip", "const int lane = threadIdx.x % 32;\n"),
    (wavefront_sizes, "csrc/ops/x_gpu.hip", "v += __shfl_xor(v, 1);\n"),
    (wavefront_sizes, "csrc/ops/x_gpu.hip", "__shared__ float sums[4];\n"),
    (references_between_backends, "backends/one/backend.py", "from spikingbrain_hal.backends.two import x\n"),
    (references_between_backends, "backends/one/backend.py", "from ..two import x\n"),
    (references_between_backends, "backends/one/vendor.h", '#include "../two/vendor.h"\n'),
    (named_runtimes, "csrc/core/x.h", "#include <hip_runtime.h>\n"),
    (named_runtimes, "spikingbrain_hal/x.py", "library.cudaMalloc(8)\n"),
    (oversized_files, "csrc/ops/x_cpu.cpp", "\n" * 251),
    (oversized_files, "spikingbrain_hal/ops/x.py", "\n" * 301),
    (oversized_files, "tests/unit/test_x.py", "\n" * 401),
    (unpaired_operators, "csrc/ops/x_backward_cpu.cpp", ""),
    (unpaired_operators, "csrc/ops/x_gpu.hip", ""),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in PLANTED))


@pytest.mark.parametrize("rule", RULES)
def test_project_keeps(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_rule_catches(rule: Rule, path: str, text: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "backends" / name).mkdir(parents=True)
        (tmp_path / "backends" / name / "backend.py").touch()
    assert rule(tmp_path) == []
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text)
    assert len(rule(tmp_path)) == 1


def test_every_limit_applies_to_a_file() -> None:
    names = [path.as_posix() for path in project_files()]
    assert [p for p in LINE_LIMITS if not any(re.fullmatch(p, name) for name in names)] == []


@pytest.fixture(scope="module")
def kernel_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The compiled kernels, one object for each file and instruction set; compiled here if no build holds them."""
    expected = len(list((ROOT / "csrc/ops").glob("*_cpu.cpp")))
    for build in [*(ROOT / "build").glob("cp*"), None]:
        if build is None:
            build = tmp_path_factory.mktemp("build")
            pybind11 = run("python", "-m", "pybind11", "--cmakedir").strip()
            run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, f"-Dpybind11_DIR={pybind11}")
            run("cmake", "--build", build, "--target", "sbhal_cpu")
        objects = list(build.glob("CMakeFiles/sbhal_cpu_*.dir/csrc/ops/*_cpu.cpp.o"))
        objects = [o for o in objects if (ROOT / "csrc/ops" / o.stem).exists()]
        levels = {o.parents[2].name for o in objects}
        if levels and len(objects) == expected * len(levels):
            return objects
    raise AssertionError("the build left no kernel objects")


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm of binutils is not installed")
def test_kernels_share_no_symbols_between_instruction_sets(kernel_objects: list[Path]) -> None:
    """The linker keeps one copy of a weak symbol: an AVX one would then run on every processor."""
    weak = {
        o.parents[2].name + "/" + o.name: found
        for o in kernel_objects
        if (found := re.findall(r"^\S* +[wWvVu] (\S+)$", run("nm", o), re.M))
    }
    assert weak == {}
