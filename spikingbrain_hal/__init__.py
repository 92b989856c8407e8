"""A hardware-abstraction layer for spiking and linear-attention models."""

from . import forks, ops
from .backend import Backend, DeviceProperties, Kernel
from .dispatch import stats
from .errors import BackendUnavailable, DeviceError, UnsupportedOp
from .selection import installed_backends, register_backend, unregister_backend, use_backend

__version__ = "0.1.0"

forks.watch()

__all__ = [
    "Backend",
    "BackendUnavailable",
    "DeviceError",
    "DeviceProperties",
    "Kernel",
    "UnsupportedOp",
    "installed_backends",
    "ops",
    "register_backend",
    "stats",
    "unregister_backend",
    "use_backend",
]
