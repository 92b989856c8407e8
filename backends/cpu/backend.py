"""The CPU backend: kernels compiled for several instruction sets, one chosen when the module loads."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from spikingbrain_hal.backend import Backend, DeviceProperties, Kernel
from spikingbrain_hal.native import load_kernels, problem_of, tensors_by

_MODULE = f"{__package__}._native"


def _native() -> Any:
    return import_module(_MODULE)


def _probe() -> str | None:
    return problem_of(_MODULE, "cpu")


def _load() -> Mapping[str, Kernel]:
    return load_kernels(_native(), "cpu")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _properties() -> DeviceProperties:
    module = _native()
    return DeviceProperties(
        _processor(),
        {
            "instruction set": module.isa,
            "instruction set detected": module.isa_detected,
            "cores": os.cpu_count(),
            "tensors by": tensors_by(module),
        },
    )


backend = Backend(
    name="cpu",
    vendor="any x86-64 or aarch64 processor",
    device_type="cpu",
    probe=_probe,
    load=_load,
    properties=_properties,
)
