"""Backends whose kernels are csrc/ops/*/*_gpu.hip, on a vendor's devices or simulated on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from platform import machine
from typing import Any

import torch

from .backend import Backend, DeviceProperties, Kernel
from .native import load_kernels, problem_of, tensors_by


def torch_vendor() -> str:
    """Whose devices this torch means by ``cuda``: "AMD", "MetaX", "Iluvatar", "NVIDIA", or "" if it has none.

    AMD, MetaX and Iluvatar builds of torch all use that name, so the device type alone says nothing.
    """
    if getattr(torch.version, "hip", None):
        return "AMD"
    if getattr(torch.version, "maca", None) or "+metax" in torch.__version__:
        return "MetaX"
    try:
        if "+corex" in version("torch"):
            return "Iluvatar"
    except PackageNotFoundError:
        pass
    return "NVIDIA" if torch.version.cuda else ""


def device_backend(package: str, name: str, vendor: str, torch_for: str = "", priority: int = 0) -> Backend:
    """A backend for a vendor's GPUs.

    Args:
        package: The backend's package, which holds ``_native`` when it was built.
        name: The backend's name.
        vendor: Whose devices it serves.
        torch_for: What :func:`torch_vendor` says of the builds of torch that see those devices; the vendor if absent.
        priority: As in :class:`Backend`.
    """
    expected = torch_for or vendor

    def probe() -> str | None:
        module = f"{package}._native"
        if find_spec(module) is None:
            return problem_of(module)
        found = torch_vendor()  # before another vendor's runtime is loaded beside torch's
        if found != expected:
            return f"this torch serves {found or 'no'} devices, not {expected}'s"
        try:
            return _without_code(package) or problem_of(module) or _native(package).problem() or None
        except RuntimeError as error:
            return str(error)

    return _backend(name, vendor, "cuda", probe, lambda: _native(package), simulated=False, priority=priority)


def _without_code(package: str) -> str | None:
    """Which device a build that names its targets has no code for: some runtimes end the process at a first call."""
    try:
        targets = getattr(import_module(f"{package}._built"), "targets", ())
    except ModuleNotFoundError:
        return None
    names = {target.split(":")[0] for target in targets}
    for index in range(torch.cuda.device_count() if targets else 0):
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        if name not in names:
            return (
                f"device {index} is {name}, this build has code for {', '.join(targets)}; "
                f'reinstall with -C cmake.define.SBHAL_ROCM_ARCHS="{name}"'
            )
    return None


def simulated_backend(package: str, name: str, vendor: str, module: Callable[[], str] = lambda: "_native") -> Backend:
    """A backend whose GPU is simulated on the CPU; it takes CPU tensors while it is selected.

    Args:
        package: The backend's package.
        name: The backend's name.
        vendor: What it stands in for.
        module: Returns the name of the native module within the package; raises ValueError where a setting is wrong.
    """

    def probe() -> str | None:
        try:
            return _processor_problem() or problem_of(f"{package}.{module()}")
        except ValueError as error:
            return str(error)

    return _backend(name, vendor, "cpu", probe, lambda: _native(package, module()), simulated=True)


X86_64_V3 = (  # what a compiler may use beyond any x86-64, in the words of /proc/cpuinfo
    *("pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm", "xsave"),
    *("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"),
)


def _processor_problem() -> str | None:
    """Why this processor cannot run the simulation, which is compiled for x86-64-v3 or any aarch64."""
    if machine() not in ("x86_64", "AMD64"):
        return None
    listed = Path("/proc/cpuinfo").read_text().split()
    missing = [name for name in X86_64_V3 if name not in listed]
    return f"simulated devices need a processor with {', '.join(missing)}" if missing else None


def _native(package: str, module: str = "_native") -> Any:
    return import_module(f"{package}.{module}")


def _backend(
    name: str,
    vendor: str,
    device_type: str,
    probe: Callable[[], str | None],
    native: Callable[[], Any],
    simulated: bool,
    priority: int = 0,
) -> Backend:
    def load() -> Mapping[str, Kernel]:
        return load_kernels(native(), device_type)

    def properties() -> DeviceProperties:
        module = native()
        details = module.device(torch.cuda.current_device() if device_type == "cuda" else 0)
        return DeviceProperties(details.pop("name"), details | {"tensors by": tensors_by(module)})

    return Backend(name, vendor, device_type, probe, load, properties, simulated, priority, checks_contents=False)
