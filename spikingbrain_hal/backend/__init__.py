"""Backends: what one is, and what makes one from a native module or from Python functions."""

from .backend import Backend, DeviceProperties, Kernel, Numerics
from .gpu import device_backend, simulated_backend, torch_vendor
from .native import host_backend

__all__ = [
    "Backend",
    "DeviceProperties",
    "Kernel",
    "Numerics",
    "device_backend",
    "host_backend",
    "simulated_backend",
    "torch_vendor",
]
