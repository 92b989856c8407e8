"""Native modules: what each must be told about torch, and the kernels it offers then."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import DeviceError, StrideError, UnsupportedOp
from .backend import Backend, DeviceProperties, Kernel
from .forks import forked

_DTYPES = ("float32", "bfloat16", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
_ERRORS = {"unsupported": UnsupportedOp, "stride": StrideError, "device": DeviceError}


def cmake_dir() -> Path:
    """Where this installation has its CMake package, with which packages of their own build backends.

    Raises:
        FileNotFoundError: It was not installed, as in a checkout that Python was started in.
    """
    import spikingbrain_hal

    folders = [Path(root, "share/cmake/spikingbrain_hal") for root in spikingbrain_hal.__path__]
    for folder in folders:
        if (folder / "spikingbrain_halConfig.cmake").exists():
            return folder
    raise FileNotFoundError(f"no spikingbrain_halConfig.cmake in {', '.join(map(str, folders))}; install the package")


def problem_of(module: str) -> str | None:
    """Why a backend's native module, given by its full name, cannot be imported; None if it can."""
    package = module.rpartition(".")[0]
    if find_spec(module) is None:
        ours, _, name = package.rpartition(".")
        advice = f'with -C sbhal.backends="{name}"' if ours == "spikingbrain_hal.backends" else f"what holds {package}"
        return f"not built; reinstall {advice}"
    try:
        import_module(module)
    except ImportError as error:
        return str(error)
    return None


def host_backend(package: str, name: str, vendor: str, priority: int = 0) -> Backend:
    """A backend whose kernels run on processors and take CPU tensors.

    Args:
        package: The backend's package, which holds ``_native`` when it was built.
        name: The backend's name.
        vendor: Whose processors it serves.
        priority: As in :class:`Backend`.
    """
    module = f"{package}._native"

    def load() -> Mapping[str, Kernel]:
        return load_kernels(import_module(module), "cpu")

    def properties() -> DeviceProperties:
        native = import_module(module)
        details = {
            "instruction set": native.isa,
            "instruction set detected": native.isa_detected,
            "cores": os.cpu_count(),
            "tensors by": tensors_by(native),
        }
        return DeviceProperties(_processor(), details)

    return Backend(name, vendor, "cpu", lambda: problem_of(module), load, properties, priority=priority)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def load_kernels(module: Any, device_type: str) -> Mapping[str, Kernel]:
    """Binds a native module to torch and returns its kernels.

    For every name in the module's ``OP_VERSION`` it has ``<op>_plan`` and ``<op>``; one that serves host memory also
    ``<op>_run``. Where it has ``OP_SIGNATURE``, the arguments are compared with the declaration's.

    Args:
        module: The module.
        device_type: The torch device type that its tensors must be on.
    """
    dtypes = {name: getattr(torch, name) for name in _DTYPES}
    use_exchange = os.environ.get("SBHAL_DLPACK_EXCHANGE", "1") != "0"
    empty = partial(torch.empty, dtype=torch.uint8)
    module.bind(device_type, torch.Tensor, dtypes, use_exchange, _ERRORS, empty, forked())
    signatures = getattr(module, "OP_SIGNATURE", {})
    return {
        name: Kernel(
            getattr(module, f"{name}_plan"),
            getattr(module, name),
            version,
            getattr(module, f"{name}_run", None),
            signatures.get(name),
        )
        for name, version in module.OP_VERSION.items()
    }


def tensors_by(module: Any) -> str:
    """How the module reads tensors, for the reports."""
    return "DLPack exchange table" if module.uses_exchange_table() else "attributes"
