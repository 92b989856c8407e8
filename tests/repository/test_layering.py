"""The rules of the layout: who may name whom, how large a file may grow, what belongs together.

Every rule is a function from a project's root to its violations, so that each can be shown to catch a planted one.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from checkout import ROOT, project_files, run

Rule = Callable[[Path], list[str]]

VENDORS = "cuda|hip|rocm|amd|nvidia|metax|maca|mxcc|musa|intel|huawei|ascend|cambricon|apple|qualcomm|moore"
RUNTIMES = r"\b(?:cuda|hip|mc)_runtime|\b(?:cuda|hip|mc)[A-Z]\w+\(|\b(?:nvcc|hipcc|mxcc)\b"
KERNELS = ("csrc/ops/*/*",)
ABOVE_RUNTIMES = ("csrc/core/*", "csrc/ops/*/*", "spikingbrain_hal/**/*.py")
DECLARATIONS = ("spikingbrain_hal/ops/*/*.py",)
SUITE = ("spikingbrain_hal/conformance/**/*.py",)
PROPERTIES = ("spikingbrain_hal/conformance/operators/*.py",)
TREES = ("csrc/ops/*/*", "spikingbrain_hal/ops/*/*.py", "tests/ops/*/*.py")
HOST_ONLY, DEVICE_ONLY = {"core/simd.h", "core/parallel.h"}, {"gpu/gpu.h"}
LINE_LIMITS = {
    r"csrc/ops/\w+/\w+_cpu\.cpp": 250,
    r"csrc/ops/\w+/\w+_gpu\.hip": 400,
    r"csrc/.*\.h": 300,
    r"csrc/(?:core|gpu|simt)/.*\.(?:cpp|hip)": 300,
    r"backends/\w+/backend\.py": 250,
    r"backends/.*\.h": 150,
    r"(?:spikingbrain_hal|calibration|docs|bench|examples)/.*\.py": 300,
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


def matches(pattern: str, sources: Iterable[tuple[Path, str]]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in sources
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def reached(root: Path, path: Path, end_at: Path | None = None) -> set[Path]:
    """The headers of csrc that a source includes, and those that they include but for one; relative to root."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        source = waiting.pop()
        text = (root / source).read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r'^#include "([^"]+)"', text, re.M):
            places = [place for place in (source.parent / name, Path("csrc", name)) if (root / place).is_file()]
            if places and places[0] not in found:
                found.add(places[0])
                waiting += [place for place in places[:1] if place != end_at]
    return found


def vendor_words(root: Path) -> list[str]:
    """Kernels are for a kind of machine, never for a vendor's."""
    return matches(rf"(?i)(?<![a-z])(?:{VENDORS})(?![a-z])", files(root, *KERNELS))


def wavefront_sizes(root: Path) -> list[str]:
    """Wavefronts are 32 lanes on one device and 64 on the next: kernels use the dialect's words for them."""
    literal = r"[%/]\s*(?:32|64)\b|&\s*(?:31|63)\b|0xffffffff"
    bare = r"warpSize|__shfl|__ballot|__activemask|__syncwarp|__shared__"
    kernels = [path for path, _ in files(root, *KERNELS) if path.suffix == ".hip"]
    headers = {h for kernel in kernels for h in reached(root, kernel) if h.is_relative_to("csrc/ops")}
    sources = [(path, (root / path).read_text(encoding="utf-8")) for path in sorted({*kernels, *headers})]
    return matches(f"{literal}|{bare}", sources)


def misnamed_headers(root: Path) -> list[str]:
    """A header of kernels says in its name whether it is for CPUs, for GPUs, or for both."""
    found = []
    for path, _ in files(root, *KERNELS):
        if path.suffix != ".h":
            continue
        # core/vf.h is a vector on a CPU and a lane on a GPU: what it includes says nothing of who includes it
        names = {h.relative_to("csrc").as_posix() for h in reached(root, path, Path("csrc/core/vf.h"))}
        kinds = [kind for kind, only in (("_cpu.h", HOST_ONLY), ("_gpu.h", DEVICE_ONLY)) if names & only]
        expected = kinds[0] if len(kinds) == 1 else ""
        suffix = next((kind for kind in ("_cpu.h", "_gpu.h") if path.name.endswith(kind)), "")
        if suffix != expected or len(kinds) == 2:
            found.append(f"{path}: reaches {', '.join(sorted(names & (HOST_ONLY | DEVICE_ONLY))) or 'neither kind'}")
    return found


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
    return matches(RUNTIMES, files(root, *ABOVE_RUNTIMES))


def oversized_files(root: Path) -> list[str]:
    """Past these sizes a file is split."""
    folders = ("csrc", "backends", "spikingbrain_hal", "calibration", "docs", "bench", "examples", "tests", "cmake")
    found = []
    for path, text in files(root, "*", *(f"{folder}/**/*.*" for folder in folders)):
        limits = [limit for pattern, limit in LINE_LIMITS.items() if re.fullmatch(pattern, path.as_posix())]
        lines = text.count("\n")
        if limits and lines > limits[0]:
            found.append(f"{path} has {lines} lines, at most {limits[0]}")
    return found


def unpaired_operators(root: Path) -> list[str]:
    """A declaration and its kernels share family and base name; a gradient may have a file of its own."""
    sources = list(files(root, *DECLARATIONS))
    declared = {
        f"{p.parent.name}/{p.stem.rstrip('_')}" for p, text in sources if re.search(r"^\w+ = operator\(", text, re.M)
    }
    found = []
    for kind in ("_cpu.cpp", "_gpu.hip"):
        paths = [path for path, _ in files(root, *KERNELS) if path.name.endswith(kind)]
        kernels = {f"{path.parent.name}/{path.name.removesuffix(kind)}" for path in paths}
        owners = {name if name in declared else name.removesuffix("_backward") for name in kernels}
        found += [f"{name}: no csrc/ops/{name}{kind}" for name in sorted(declared - owners)]
        found += [f"{name}{kind}: no declaration in spikingbrain_hal/ops" for name in sorted(owners - declared)]
    return found


def strange_families(root: Path) -> list[str]:
    """A family has the same name in each tree; what is declared is what there is."""
    declared = {path.parent.name for path, _ in files(root, *DECLARATIONS)}
    named = {path.parent for tree in TREES for path, _ in files(root, tree)}
    return [
        f"{folder}: no spikingbrain_hal/ops/{folder.name}" for folder in sorted(named) if folder.name not in declared
    ]


def operator_names(root: Path) -> set[str]:
    """The operators that are declared, by name; a backward is its forward's."""
    texts = (text for _, text in files(root, *DECLARATIONS))
    return {name for text in texts for name in re.findall(r'^\w+ = operator\(\s*"(\w+)"', text, re.M)}


def unknown_operators(root: Path) -> list[str]:
    """What the suite knows of an operator stands in a file of its name."""
    known = {path.stem for path, _ in files(root, *PROPERTIES) if not path.stem.startswith("_")}
    declared, folder = operator_names(root), Path(PROPERTIES[0]).parent
    found = [f"{name}: no {folder}/{name}.py" for name in sorted(declared - known)]
    return found + [f"{folder}/{name}.py: no declaration" for name in sorted(known - declared)]


def words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What code names, each with its line: identifiers, modules, and strings that are no docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(word)) if id(node) not in docstrings:
                yield node.lineno, word
            case ast.Name(id=word) | ast.arg(arg=word) | ast.alias(name=word) | ast.FunctionDef(name=word):
                yield node.lineno, word
            case ast.Attribute(value=ast.Name(id="ops"), attr=word):
                yield node.lineno, word
            case ast.ImportFrom(module=str(word)):
                yield node.lineno, f"{word}."


def operators_named_by_checks(root: Path) -> list[str]:
    """The suite knows an operator in that file alone; a name of one word, as prose may have, counts at the start."""
    starts = ((r"\b" if "_" in name else "^") + name for name in sorted(operator_names(root)))
    named = re.compile("|".join(rf"{start}(?:_backward)?\b" for start in starts) + r"|(?:^|\.)ops\.\w")
    return [
        f"{path}:{line}: {word}"
        for path, text in files(root, *SUITE)
        if path.parent != Path(PROPERTIES[0]).parent
        for line, word in words(ast.parse(text))
        if named.search(word)
    ]


KERNEL = "csrc/ops/one/x"
CHECK = "spikingbrain_hal/conformance/checks/x.py"
PLANTED: list[tuple[Rule, str, str]] = [
    (vendor_words, f"{KERNEL}_cpu.cpp", "// as on ROCm\n"),
    (vendor_words, f"{KERNEL}.h", "int cuda_block;\n"),
    (wavefront_sizes, f"{KERNEL}_gpu.hip", "const int lane = threadIdx.x % 32;\n"),
    (wavefront_sizes, f"{KERNEL}_gpu.hip", "v += __shfl_xor(v, 1);\n"),
    (wavefront_sizes, f"{KERNEL}_gpu.hip", "__shared__ float sums[4];\n"),
    (wavefront_sizes, "csrc/ops/one/far.h", "const int lane = threadIdx.x & 31;\n"),
    (misnamed_headers, f"{KERNEL}_cpu.h", "// for both\n"),
    (misnamed_headers, f"{KERNEL}.h", '#include "core/parallel.h"\n'),
    (misnamed_headers, f"{KERNEL}_cpu.h", '#include "gpu/gpu.h"\n'),
    (references_between_backends, "backends/one/backend.py", "from spikingbrain_hal.backends.two import x\n"),
    (references_between_backends, "backends/one/backend.py", "from ..two import x\n"),
    (references_between_backends, "backends/one/vendor.h", '#include "../two/vendor.h"\n'),
    (named_runtimes, "csrc/core/x.h", "#include <hip_runtime.h>\n"),
    (named_runtimes, "spikingbrain_hal/x.py", "library.cudaMalloc(8)\n"),
    (oversized_files, f"{KERNEL}_cpu.cpp", "\n" * 251),
    (oversized_files, "spikingbrain_hal/ops/one/x.py", "\n" * 301),
    (oversized_files, "tests/calls/test_x.py", "\n" * 401),
    (unpaired_operators, f"{KERNEL}_backward_cpu.cpp", ""),
    (unpaired_operators, "csrc/ops/two/x_gpu.hip", ""),
    (unknown_operators, "spikingbrain_hal/ops/one/x.py", 'SPEC = operator(\n    "x",\n'),
    (unknown_operators, "spikingbrain_hal/conformance/operators/x.py", ""),
    (operators_named_by_checks, CHECK, 'FACTORS = {"y": ("k", "v")}\n'),
    (operators_named_by_checks, CHECK, 'WITHOUT = ("a", "y_backward")\n'),
    (operators_named_by_checks, CHECK, 'COMMAND = "--op lif_y"\n'),
    (operators_named_by_checks, CHECK, "def y(): ...\n"),
    (operators_named_by_checks, CHECK, "result = ops.y(1)\n"),
    (operators_named_by_checks, CHECK, "from ...ops import y\n"),
    (operators_named_by_checks, CHECK, "from ...ops.one.near import LIMIT\n"),
    (operators_named_by_checks, "spikingbrain_hal/conformance/x.py", "import spikingbrain_hal.ops.one.near\n"),
    (strange_families, "csrc/ops/three/x.h", ""),
    (strange_families, "tests/ops/three/test_x.py", ""),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in PLANTED))


@pytest.mark.parametrize("rule", RULES)
def test_project_keeps(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_rule_catches(rule: Rule, path: str, text: str, tmp_path: Path) -> None:
    sound = {
        "backends/one/backend.py": "",
        "backends/two/backend.py": "",
        "csrc/core/parallel.h": "",
        "csrc/gpu/gpu.h": "",
        "csrc/ops/one/near.h": '#include "far.h"\n',
        "csrc/ops/one/y_gpu.hip": '#include "near.h"\n',
        "csrc/ops/one/y_cpu.cpp": "",
        "spikingbrain_hal/ops/one/y.py": 'OP = operator("y")\nOTHER = operator(\n    "lif_y",\n)\n',
        "spikingbrain_hal/conformance/operators/y.py": 'register("y")\n',
        "spikingbrain_hal/conformance/operators/lif_y.py": "",
        "spikingbrain_hal/conformance/operators/_shared.py": "",
        "spikingbrain_hal/conformance/checks/y.py": '"""y and lif_y."""\nfrom ... import ops\nx = "or y", z.y\n',
    }
    for name, body in sound.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body)
    assert rule(tmp_path) == []
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text)
    assert len(rule(tmp_path)) == 1


@pytest.mark.parametrize("pattern", sorted({*KERNELS, *ABOVE_RUNTIMES, *DECLARATIONS, *SUITE, *PROPERTIES, *TREES}))
def test_every_rule_looks_at_files(pattern: str) -> None:
    assert any(files(ROOT, pattern))


def test_every_limit_applies_to_a_file() -> None:
    names = [path.as_posix() for path in project_files()]
    assert [p for p in LINE_LIMITS if not any(re.fullmatch(p, name) for name in names)] == []


@pytest.fixture(scope="module")
def kernel_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The compiled kernels, one object for each file and instruction set; compiled here if no build holds them."""
    expected = len(list((ROOT / "csrc/ops").glob("*/*_cpu.cpp")))
    for build in [*(ROOT / "build").glob("cp*"), None]:
        if build is None:
            build = tmp_path_factory.mktemp("build")
            pybind11 = run("python", "-m", "pybind11", "--cmakedir").strip()
            run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, f"-Dpybind11_DIR={pybind11}")
            run("cmake", "--build", build, "--target", "sbhal_cpu")
        objects = list(build.glob("CMakeFiles/sbhal_cpu_*.dir/csrc/ops/*/*_cpu.cpp.o"))
        objects = [o for o in objects if (ROOT / "csrc/ops" / o.parent.name / o.stem).exists()]
        levels = {o.parents[3].name for o in objects}
        if levels and len(objects) == expected * len(levels):
            return objects
    raise AssertionError("the build left no kernel objects")


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm of binutils is not installed")
def test_kernels_share_no_symbols_between_instruction_sets(kernel_objects: list[Path]) -> None:
    """The linker keeps one copy of a weak symbol: an AVX one would then run on every processor."""
    weak = {
        o.parents[3].name + "/" + o.name: found
        for o in kernel_objects
        if (found := re.findall(r"^\S* +[wWvVu] (\S+)$", run("nm", o), re.M))
    }
    assert weak == {}
