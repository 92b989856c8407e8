"""Runs the GPU kernels under ThreadSanitizer on simulated devices, without Python or torch in the process.

    python tests/simt/race.py [--out out/race] [--op attention ...] [--cases 2]

Records the smallest conformance cases of every operator and dtype, builds tests/simt/replay.cpp with instrumented
kernels over an executor that tells the detector about GPU threads, barriers and blocks, and replays the calls, at most
8 blocks of each launch in a random order. Fails if a race is reported or a call fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from record import record

from spikingbrain_hal.declare.registry import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
DEVICES = {
    "sim-32": ("-DSBHAL_SIMT_WAVE=32", f"-I{ROOT}/backends/sim"),
    "sim-64": ("-DSBHAL_SIMT_WAVE=64", f"-I{ROOT}/backends/sim"),
    "maca": ("-DSBHAL_SIMT_WAVE=64", f"-I{ROOT}/backends/maca", f"-I{ROOT}/backends/maca/standin"),
}
FLAGS = (
    "-std=c++17",
    "-O1",
    "-g1",
    "-fopenmp",
    "-Wno-unknown-pragmas",
    "-DSBHAL_GPU",
    "-DSBHAL_ISA=gpu",
    "-DSBHAL_ISA_LEVEL=0",
)
MOST_BLOCKS = 8


def compile_one(source: Path, to: Path, flags: Sequence[str]) -> Path:
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *FLAGS, *flags, f"-I{ROOT}/csrc", "-x", "c++", "-c", source, "-o", to], check=True)
    return to


def build(device: str, out: Path, jobs: int) -> Path:
    """The driver for one device. The executor and the host's code are not instrumented: the GPU threads are."""
    folder = out / device
    folder.mkdir(parents=True, exist_ok=True)
    kernels = [(path, ["-fsanitize=thread"]) for path in sorted((ROOT / "csrc/ops").glob("*/*_gpu.hip"))]
    host = [*(ROOT / "csrc/simt").glob("*.cpp"), ROOT / "csrc/core/check.cpp", ROOT / "tests/simt/replay.cpp"]
    sources = kernels + [(path, ["-DSBHAL_SIMT_TSAN=1"]) for path in host]
    with ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(compile_one, p, folder / f"{p.name}.o", [*DEVICES[device], *f]) for p, f in sources]
        objects = [w.result() for w in work]
    program = folder / "replay"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-fsanitize=thread", "-fopenmp", *objects, "-o", program], check=True)
    return program


def replay(program: Path, calls: Path, seed: int) -> bool:
    """Whether every call ran and no race was seen."""
    settings = {"SBHAL_SIMT_SEED": str(seed), "SBHAL_SIMT_MAX_BLOCKS": str(MOST_BLOCKS)}
    done = subprocess.run(
        [program, calls],
        env={**os.environ, **settings, "TSAN_OPTIONS": "exitcode=66"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    (program.parent / "log").write_text(done.stdout)
    if done.returncode:
        print(done.stdout[-6000:])
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/race"))
    parser.add_argument("--op", action="append", default=[], help="Only this operator; repeatable.")
    parser.add_argument("--device", action="append", choices=DEVICES, help="Only this device; repeatable.")
    parser.add_argument("--cases", type=int, default=2, help="Cases of each operator and dtype.")
    parser.add_argument("--seed", type=int, default=1, help="Chooses the order of blocks, not 0.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    calls = given.out / "calls"
    count = record(calls, given.op or list(OPERATORS), given.cases)
    good = True
    for device in given.device or ("sim-32", "maca"):
        started = time.monotonic()
        program = build(device, given.out, os.cpu_count() or 1)
        built = time.monotonic()
        clean = replay(program, calls, given.seed)
        verdict = "no race" if clean else f"races or errors, see {program.parent / 'log'}"
        times = f"built in {built - started:.0f} s, ran in {time.monotonic() - built:.0f} s"
        print(f"{device}: {count} calls, {verdict}; seed {given.seed}; {times}", flush=True)
        good = good and clean
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
