"""A hardware-abstraction layer for spiking and linear-attention models."""

from . import ops
from .backend import forks
from .backend.backend import Backend, DeviceProperties, Kernel
from .calls.dispatch import stats
from .calls.selection import installed_backends, register_backend, unregister_backend, use_backend
from .errors import BackendUnavailable, DeviceError, UnsupportedOp

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
