"""A backend that reads one element past its input, or aborts: importing it registers it."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from spikingbrain_hal import register_backend
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.testing import python_backend

NAME = "overreading"


def reads_on(*args: Any) -> Any:
    x = args[0]
    if x.numel():
        ctypes.string_at(x.data_ptr() + x.numel() * x.itemsize, x.itemsize)
    return OPERATORS["spike_encode"].reference(*args)


def reads_back(*args: Any) -> Any:
    x = args[0]
    if x.numel():
        ctypes.string_at(x.data_ptr() - x.itemsize, x.itemsize)
    return OPERATORS["spike_quantize"].reference(*args)


def aborts(*args: Any) -> Any:
    if args[0].dim() == 1:
        os.abort()
    return OPERATORS["spike_expand"].reference(*args)


register_backend(python_backend(NAME, {"spike_encode": reads_on, "spike_quantize": reads_back, "spike_expand": aborts}))
