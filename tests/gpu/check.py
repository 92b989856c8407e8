"""Compiles the GPU backends for every target, imports each module without its device, and reads the machine code.

    python tests/gpu/check.py [--out out/gpu] [--target gfx90a ...]

Builds each target with the project's own CMake, as a user would, and prints a table: seconds, size of the module,
the most registers of a kernel, the bytes that a thread of any kernel spills, the most shared memory of a kernel, matrix
instructions. Fails if a target does not compile or import, if a kernel wants more than 48 KiB of shared memory or has
another wavefront than its device; where the device has matrix units also if a kernel spills more than a few bytes or
multiplies 16-bit matrices without them. Devices without are served, not tuned for: their spills are only shown.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
MOST_SHARED = 48 * 1024
MOST_SPILLED = 64  # bytes a thread, stored and loaded: without, kernels would leave room for half as many blocks
MATRIX_KERNELS = tuple(
    f"{op}{part}" for op in ("gated_linear_attention", "attention", "spike_linear") for part in ("", "_backward")
)


@dataclass(frozen=True)
class Target:
    """One architecture of one backend.

    Attributes:
        arch: As its compiler calls it.
        backend: The folder of backends/.
        wavefront: Lanes of its wavefront.
        matrix: What its matrix instructions match, empty if it has none.
        defines: CMake settings.
    """

    arch: str
    backend: str
    wavefront: int
    matrix: str
    defines: tuple[str, ...]


@dataclass
class Kernel:
    """One kernel's entry in the machine code."""

    file: str
    name: str
    registers: int = 0
    spills: int = 0
    shared: int = 0
    wavefront: int = 32
    matrix: int = 0


@dataclass
class Result:
    """What became of a target."""

    target: Target
    seconds: float = 0.0
    size: int = 0
    kernels: list[Kernel] = field(default_factory=list)
    says: str = ""
    problems: list[str] = field(default_factory=list)


def run(*command: str | Path, **environment: str) -> str:
    """Output of a command; raises RuntimeError with its end if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:3]))} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def cuda_targets() -> Iterator[Target]:
    for arch in ("80", "90"):
        yield Target(
            f"sm_{arch}+PTX", "cuda", 32, r"\bHMMA\b", (f"SBHAL_CUDA_ARCHS={arch}", "SBHAL_CUDA_FLAGS=-Xptxas=-v")
        )


def rocm_targets(out: Path) -> Iterator[Target]:
    for arch, wavefront, matrix in (("gfx906", 64, ""), ("gfx90a", 64, "v_mfma"), ("gfx1030", 32, "")):
        yield Target(arch, "rocm", wavefront, matrix, (f"SBHAL_ROCM_ARCHS={arch}",))
    for arch, wavefront, matrix in (("gfx942", 64, "v_mfma"), ("gfx1100", 32, "")):
        flags = f"--rocm-path=/usr;--rocm-device-lib-path={out / 'bitcode'}"
        clang = (f"SBHAL_HIPCC={shutil.which('clang++-19')}", f"SBHAL_ROCM_FLAGS={flags}")
        yield Target(arch, "rocm", wavefront, matrix, (f"SBHAL_ROCM_ARCHS={arch}", *clang))


def complete_device_libraries(out: Path) -> None:
    """AMD's device libraries of Debian 12 lack one constant for newer targets: the number of the instruction set."""
    folder = out / "bitcode"
    folder.mkdir(parents=True, exist_ok=True)
    [installed] = Path("/usr/lib").glob("*/amdgcn/bitcode")
    for file in installed.glob("*.bc"):
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    for arch, number in (("942", 9402), ("1100", 11000)):
        options = ("-target", "amdgcn-amd-amdhsa", f"-mcpu=gfx{arch}", "-nogpulib", "-emit-llvm")
        empty, source = folder / "empty.cl", folder / f"{arch}.ll"
        empty.write_text("")
        text = run("clang-19", "-x", "cl", "-cl-std=CL2.0", *options, "-S", "-o", "-", empty)
        [layout] = re.findall(r"^target datalayout.*$", text, re.M)
        source.write_text(
            f'{layout}\ntarget triple = "amdgcn-amd-amdhsa"\n@__oclc_ISA_version = linkonce_odr protected '
            f"local_unnamed_addr addrspace(4) constant i32 {number}, align 4\n"
        )
        run("clang-19", "-x", "ir", *options, "-c", "-o", folder / f"oclc_isa_version_{arch}.bc", source)


def disassemblers() -> list[Path]:
    """Where the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm put their programs."""
    found = find_spec("nvidia")
    return [
        folder
        for root in (found.submodule_search_locations or () if found else ())
        for folder in Path(root).glob("*/bin")
    ]


def build(target: Target, out: Path) -> tuple[Path, str]:
    """The module, and what the compilers said."""
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    defines = (f"SBHAL_BACKENDS={target.backend}", f"pybind11_DIR={pybind11}", f"Python_EXECUTABLE={sys.executable}")
    options = [f"-D{d}" for d in (*defines, *target.defines)]
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", out, *options)
    log = run("cmake", "--build", out, "--clean-first", "--verbose")  # the assembler reports only what it compiles
    [module] = (out / target.backend).glob("_native*.so")
    return module, log


def import_alone(module: Path) -> str:
    """What the module says of its device, in a process of its own."""
    code = "import _native; print(_native.problem() or 'a device is here')"
    return run(sys.executable, "-c", code, PYTHONPATH=str(module.parent)).strip()


def cuda_kernels(target: Target, objects: Sequence[Path], log: str) -> Iterator[Kernel]:
    """From the assembler's report and the disassembly."""
    counts: dict[str, int] = {}
    for file in objects:
        name = ""
        for line in run("cuobjdump", "-sass", file).splitlines():
            if found := re.search(r"Function : (\S+)", line):
                name = found[1]
            counts[name] = counts.get(name, 0) + bool(re.search(target.matrix, line))
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    for name, stores, loads, registers, rest in re.findall(pattern, log, re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        file = re.search(r"\d_([a-z_]+?)_gpu_hip", name)
        yield Kernel(
            file[1] if file else "device",
            name,
            int(registers),
            int(stores) + int(loads),
            int(shared[1]) if shared else 0,
            matrix=counts.get(name, 0),
        )


def rocm_kernels(target: Target, objects: Sequence[Path]) -> Iterator[Kernel]:
    """From the code objects within the host objects: their notes and their disassembly."""
    version = "19" if any("clang++-19" in d for d in target.defines) else "15"
    for file in objects:
        bundle, code = file.with_suffix(".bundle"), file.with_suffix(".code")
        run("objcopy", "--dump-section", f".hip_fatbin={bundle}", file, os.devnull)
        run(
            f"clang-offload-bundler-{version}",
            "--unbundle",
            "--type=o",
            f"--targets=hipv4-amdgcn-amd-amdhsa--{target.arch}",
            f"--input={bundle}",
            f"--output={code}",
        )
        counts: dict[str, int] = {}
        name = ""
        for line in run(f"llvm-objdump-{version}", "-d", code).splitlines():
            if found := re.match(r"[0-9a-f]+ <(\S+)>:", line):
                name = found[1]
            elif target.matrix and target.matrix in line:
                counts[name] = counts.get(name, 0) + 1
        notes = run(f"llvm-readelf-{version}", "--notes", code)
        for entry in notes.split(".args:")[1:]:
            number = {key: int(value) for key, value in re.findall(r"\.(\w+): +(\d+)", entry)}
            [symbol] = re.findall(r"\.name: +(\S+)\n", entry)[-1:]
            yield Kernel(
                file.name.split("_gpu")[0],
                symbol,
                number["vgpr_count"],
                4 * number["vgpr_spill_count"],
                number["group_segment_fixed_size"],
                number["wavefront_size"],
                counts.get(symbol, 0),
            )


def problems_of(target: Target, kernels: Sequence[Kernel]) -> Iterator[str]:
    """What the machine code should not be."""
    for k in kernels:
        if target.matrix and k.spills > MOST_SPILLED:
            yield f"{k.file}: {k.name} spills {k.spills} bytes"
        if k.shared > MOST_SHARED:
            yield f"{k.file}: {k.name} takes {k.shared} bytes of shared memory"
        if k.wavefront != target.wavefront:
            yield f"{k.file}: {k.name} has a wavefront of {k.wavefront}"
    for file in MATRIX_KERNELS if target.matrix else ():
        if not any(k.matrix for k in kernels if k.file == file):
            yield f"{file}: no matrix instruction"


def check(target: Target, out: Path) -> Result:
    result = Result(target)
    started = time.monotonic()
    try:
        module, log = build(target, out)
        result.seconds, result.size = time.monotonic() - started, module.stat().st_size
        result.says = import_alone(module)
        objects = sorted((out / target.backend).glob("*_gpu.o"))
        read = cuda_kernels(target, objects, log) if target.backend == "cuda" else rocm_kernels(target, objects)
        result.kernels = list(read)
        result.problems += problems_of(target, result.kernels) if result.kernels else ["no kernel was found"]
    except (RuntimeError, OSError, ValueError) as error:
        result.problems.append(str(error))
    return result


def show(console: Console, results: Sequence[Result]) -> None:
    table = Table(
        "target", "seconds", "size, KiB", "kernels", "registers", "spilled, B", "shared, KiB", "matrix", "verdict"
    )
    for r in results:
        registers, spills, shared = (
            max((getattr(k, name) for k in r.kernels), default=0) for name in ("registers", "spills", "shared")
        )
        matrix = sum(k.matrix for k in r.kernels)
        verdict = f"[red]{len(r.problems)} problems[/]" if r.problems else "[green]ok[/]"
        numbers = (
            f"{r.seconds:.0f}",
            f"{r.size / 1024:.0f}",
            len(r.kernels),
            registers,
            spills,
            f"{shared / 1024:.1f}",
        )
        table.add_row(r.target.arch, *map(str, numbers), str(matrix) if r.target.matrix else "none", verdict)
    console.print(table)
    for r in results:
        console.print(f"{r.target.arch} without its device: {r.says}", soft_wrap=True, markup=False)
        for problem in r.problems:
            console.print(f"{r.target.arch}: {problem}", soft_wrap=True, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--target", action="append", help="Only this target; repeatable.")
    options = parser.parse_args()
    os.environ["PATH"] += "".join(f"{os.pathsep}{path}" for path in disassemblers())
    out = options.out.resolve()
    complete_device_libraries(out)
    targets = [t for t in (*cuda_targets(), *rocm_targets(out)) if not options.target or t.arch in options.target]
    console = Console(width=120)
    results = []
    for target in targets:
        console.print(f"building {target.backend} for {target.arch}")
        results.append(check(target, out / target.arch))
    show(console, results)
    sys.exit(1 if not results or any(r.problems for r in results) else 0)


if __name__ == "__main__":
    main()
