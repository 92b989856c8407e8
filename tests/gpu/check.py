"""Compiles the GPU backends for every target, imports each module without its device, and reads the machine code.

    python tests/gpu/check.py [--out out/gpu] [--target gfx90a ...]

Builds one module for all targets of a compiler with the project's own CMake, as a user would, and prints a table: the
most registers of a kernel, the bytes that a thread of any kernel spills, the most shared memory of a kernel, matrix
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
from dataclasses import dataclass, field, replace
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
    """One architecture.

    Attributes:
        arch: As its compiler calls it.
        wavefront: Lanes of its wavefront.
        matrix: What its matrix instructions match, empty if it has none.
    """

    arch: str
    wavefront: int
    matrix: str


@dataclass(frozen=True)
class Build:
    """A module for several architectures of one backend.

    Attributes:
        name: Of its folder.
        backend: The folder of backends/.
        setting: The CMake setting that names the architectures.
        targets: Those.
        defines: More CMake settings.
        tools: What the names of LLVM's tools end with, for AMD.
    """

    name: str
    backend: str
    setting: str
    targets: tuple[Target, ...]
    defines: tuple[str, ...] = ()
    tools: str = ""


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


def builds(out: Path) -> Iterator[Build]:
    nvidia = tuple(Target(f"sm_{arch}", 32, r"\bHMMA\b") for arch in (80, 90))
    yield Build("cuda", "cuda", "SBHAL_CUDA_ARCHS", nvidia, ("SBHAL_CUDA_FLAGS=-Xptxas=-v",))
    old = (Target("gfx906", 64, ""), Target("gfx90a", 64, "v_mfma"), Target("gfx1030", 32, ""))
    yield Build("hipcc", "rocm", "SBHAL_ROCM_ARCHS", old, tools="15")
    new = (Target("gfx942", 64, "v_mfma"), Target("gfx1100", 32, ""))
    flags = f"--rocm-path=/usr;--rocm-device-lib-path={out / 'bitcode'}"
    clang = (f"SBHAL_HIPCC={shutil.which('clang++-19')}", f"SBHAL_ROCM_FLAGS={flags}")
    yield Build("clang", "rocm", "SBHAL_ROCM_ARCHS", new, clang, tools="19")


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


def compile_module(build: Build, out: Path) -> tuple[Path, str]:
    """The module, and what the compilers said."""
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    archs = ";".join(target.arch.removeprefix("sm_") for target in build.targets)
    defines = (f"SBHAL_BACKENDS={build.backend}", f"pybind11_DIR={pybind11}", f"Python_EXECUTABLE={sys.executable}")
    options = [f"-D{d}" for d in (*defines, f"{build.setting}={archs}", *build.defines)]
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", out, *options)
    log = run("cmake", "--build", out, "--clean-first", "--verbose")  # the assembler reports only what it compiles
    [module] = (out / build.backend).glob("_native*.so")
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
        for line in run("cuobjdump", "-sass", "-arch", target.arch, file).splitlines():
            if found := re.search(r"Function : (\S+)", line):
                name = found[1]
            counts[name] = counts.get(name, 0) + bool(re.search(target.matrix, line))
    pattern = (
        rf"Compiling entry function '(\S+)' for '{target.arch}'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
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


def rocm_kernels(target: Target, objects: Sequence[Path], tools: str) -> Iterator[Kernel]:
    """From the code objects within the host objects: their notes and their disassembly."""
    for file in objects:
        bundle, code = file.with_suffix(".bundle"), file.with_suffix(f".{target.arch}")
        run("objcopy", "--dump-section", f".hip_fatbin={bundle}", file, os.devnull)
        run(
            f"clang-offload-bundler-{tools}",
            "--unbundle",
            "--type=o",
            f"--targets=hipv4-amdgcn-amd-amdhsa--{target.arch}",
            f"--input={bundle}",
            f"--output={code}",
        )
        counts: dict[str, int] = {}
        name = ""
        for line in run(f"llvm-objdump-{tools}", "-d", code).splitlines():
            if found := re.match(r"[0-9a-f]+ <(\S+)>:", line):
                name = found[1]
            elif target.matrix and target.matrix in line:
                counts[name] = counts.get(name, 0) + 1
        notes = run(f"llvm-readelf-{tools}", "--notes", code)
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


def check(build: Build, out: Path) -> Iterator[Result]:
    try:
        module, log = compile_module(build, out)
        says = import_alone(module)
        size = module.stat().st_size
    except (RuntimeError, OSError, ValueError) as error:
        yield from (Result(target, problems=[str(error)]) for target in build.targets)
        return
    objects = sorted((out / build.backend).glob("*_gpu.o"))
    for target in build.targets:
        result = Result(target, size, says=says)
        try:
            cuda = build.backend == "cuda"
            read = cuda_kernels(target, objects, log) if cuda else rocm_kernels(target, objects, build.tools)
            result.kernels = list(read)
            result.problems += problems_of(target, result.kernels) if result.kernels else ["no kernel was found"]
        except (RuntimeError, ValueError) as error:
            result.problems.append(str(error))
        yield result


def show(console: Console, results: Sequence[Result]) -> None:
    table = Table("target", "module, KiB", "kernels", "registers", "spilled, B", "shared, KiB", "matrix", "verdict")
    for r in results:
        registers, spills, shared = (
            max((getattr(k, name) for k in r.kernels), default=0) for name in ("registers", "spills", "shared")
        )
        matrix = sum(k.matrix for k in r.kernels)
        verdict = f"[red]{len(r.problems)} problems[/]" if r.problems else "[green]ok[/]"
        numbers = (f"{r.size / 1024:.0f}", len(r.kernels), registers, spills, f"{shared / 1024:.1f}")
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
    console = Console(width=120)
    results = []
    for build in builds(out):
        chosen = tuple(t for t in build.targets if not options.target or t.arch in options.target)
        if chosen:
            started = time.monotonic()
            results += check(replace(build, targets=chosen), out / build.name)
            names = ", ".join(t.arch for t in chosen)
            console.print(f"{build.name}: {names} compiled and read in {time.monotonic() - started:.0f} s")
    show(console, results)
    sys.exit(1 if not results or any(r.problems for r in results) else 0)


if __name__ == "__main__":
    main()
