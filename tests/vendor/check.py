"""Backends in packages of their own, as vendors have them: installed beside the project's wheel and held to the suite.

    python tests/vendor/check.py [--out out/vendor]

Installs the examples and runs the quick profile on each; every operator that they offer must pass. Adds a second
kernel of one operator, which must be refused. Writes a package for each GPU compiler, enables a shared kernel, compiles
it, and expects the reason that it cannot run here, as there is no such device; needs nvcc and hipcc.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from checkout import Environment, build_wheel, copy_project, make_environment  # noqa: E402

EXAMPLES = {
    "scalar": {"lif_scan", "lif_scan_backward", "spike_encode"},
    "numpy": {"spike_collapse", "spike_expand"},
}
COMPILED = {"cuda": ("NVIDIA", "SBHAL_CUDA_ARCHS=80"), "hip": ("AMD", "SBHAL_ROCM_ARCHS=gfx90a")}
LINE = "# sbhal_use_shared_sources"


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def sbhal(environment: Environment, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command away from the checkout."""
    command = [environment.folder / "bin/sbhal", *arguments]
    return subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def check_example(environment: Environment, out: Path, name: str) -> None:
    folder = out / name
    shutil.copytree(ROOT / "examples/backends" / name, folder)
    environment.install(".", cwd=folder)
    arguments = ("--backend", name, "--profile", "quick", "--no-bench", "--waivers", "waivers.toml", "--out", "report")
    done = sbhal(environment, folder, "conformance", *arguments)
    assert done.returncode == 0, done.stdout
    operators = json.loads((folder / "report/report.json").read_text())["operators"]
    passed = {o["op"] for o in operators if o["verdict"] == "pass"} - {"backend"}
    assert passed == EXAMPLES[name], f"{name}: {sorted(passed)} pass, expected {sorted(EXAMPLES[name])}"
    say(f"{name}: {', '.join(sorted(passed))} pass")


def check_second_kernel(environment: Environment, folder: Path) -> None:
    with (folder / "CMakeLists.txt").open("a") as file:
        file.write("sbhal_use_shared_sources(scalar spike_encode)\n")
    environment.install(".", cwd=folder)
    done = sbhal(environment, folder, "conformance", "--backend", "scalar")
    assert done.returncode == 2, done.stdout
    assert "two kernels of spike_encode" in " ".join(done.stdout.split()), done.stdout
    say("scalar with a second kernel of spike_encode is refused")


def check_style(environment: Environment, out: Path, style: str) -> None:
    vendor, define = COMPILED[style]
    name = f"a{style}"
    done = sbhal(environment, out, "new-backend", name, "--style", style)
    assert done.returncode == 0, done.stdout
    folder = out / f"sbhal-{name}"
    text = (folder / "CMakeLists.txt").read_text()
    assert LINE in text
    (folder / "CMakeLists.txt").write_text(text.replace(LINE, LINE.removeprefix("# ")))
    environment.install(".", f"--config-settings=cmake.define.{define}", cwd=folder)
    done = sbhal(environment, folder, "conformance", "--backend", name)
    assert done.returncode == 2, done.stdout
    expected = f"backend '{name}' is not available: this torch serves no devices, not {vendor}'s"
    assert expected in " ".join(done.stdout.split()), done.stdout
    module = next((environment.folder / "lib").glob(f"*/site-packages/sbhal_{name}/_native*.so"))
    code = f"import sys; sys.path.append({str(module.parent)!r}); import _native; "
    says = environment.evaluate(code + "print(*_native.OP_VERSION, '-', _native.problem() or 'a device is here')", out)
    assert says.startswith("spike_encode spike_quantize - "), says
    say(f"{style}: compiled; without its device: {says}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/vendor"))
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    wheel = build_wheel(copy_project(out / "project", kernels=""), out / "wheels", "--config-settings=sbhal.backends=")
    environment = make_environment(out / "environment")
    environment.install(wheel, cwd=out)
    for name in EXAMPLES:
        check_example(environment, out, name)
    check_second_kernel(environment, out / "scalar")
    for style in COMPILED:
        check_style(environment, out, style)


if __name__ == "__main__":
    main()
