"""The CPU backend: kernels compiled for several instruction sets, one chosen when the module loads."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from spikingbrain_hal.backend import Backend, DeviceProperties, Kernel, kernels_of
from spikingbrain_hal.errors import StrideError, UnsupportedOp

_DTYPES = ("float32", "bfloat16", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


def _native() -> Any:
    from . import _native  # type: ignore[attr-defined]

    return _native


def _probe() -> str | None:
    if find_spec(f"{__package__}._native") is None:
        return 'not built; reinstall with -C sbhal.backends="cpu"'
    try:
        _native()
    except ImportError as error:
        return str(error)
    return None


def _load() -> Mapping[str, Kernel]:
    module = _native()
    dtypes = {name: getattr(torch, name) for name in _DTYPES}
    use_exchange = os.environ.get("SBHAL_DLPACK_EXCHANGE", "1") != "0"
    empty = partial(torch.empty, dtype=torch.uint8)
    module.bind(torch.Tensor, dtypes, use_exchange, UnsupportedOp, StrideError, empty)
    return kernels_of(module)


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
            "tensors by": "DLPack exchange table" if module.uses_exchange_table() else "attributes",
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
