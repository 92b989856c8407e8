"""Native modules: what each must be told about torch, and the kernels it offers then."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from .backend import Kernel
from .errors import DeviceError, StrideError, UnsupportedOp

_DTYPES = ("float32", "bfloat16", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
_ERRORS = {"unsupported": UnsupportedOp, "stride": StrideError, "device": DeviceError}


def problem_of(module: str, backend: str) -> str | None:
    """Why a native module cannot be imported, None if it can.

    Args:
        module: Its full name.
        backend: The backend that builds it, for the advice.
    """
    if find_spec(module) is None:
        return f'not built; reinstall with -C sbhal.backends="{backend}"'
    try:
        import_module(module)
    except ImportError as error:
        return str(error)
    return None


def load_kernels(module: Any, device_type: str) -> Mapping[str, Kernel]:
    """Binds a native module to torch and returns its kernels.

    For every name in the module's ``OP_VERSION`` it has ``<op>_plan`` and ``<op>``; one that serves host memory also
    ``<op>_run``.

    Args:
        module: The module.
        device_type: The torch device type that its tensors must be on.
    """
    dtypes = {name: getattr(torch, name) for name in _DTYPES}
    use_exchange = os.environ.get("SBHAL_DLPACK_EXCHANGE", "1") != "0"
    module.bind(device_type, torch.Tensor, dtypes, use_exchange, _ERRORS, partial(torch.empty, dtype=torch.uint8))
    return {
        name: Kernel(
            getattr(module, f"{name}_plan"), getattr(module, name), version, getattr(module, f"{name}_run", None)
        )
        for name, version in module.OP_VERSION.items()
    }


def tensors_by(module: Any) -> str:
    """How the module reads tensors, for the reports."""
    return "DLPack exchange table" if module.uses_exchange_table() else "attributes"
