"""MetaX GPUs, through MACA; where there is no SDK to build with, a simulated device like them."""

from importlib import import_module
from importlib.util import find_spec

from spikingbrain_hal.backend import device_backend, simulated_backend


def _is_simulated() -> bool:
    """What the build left beside this file says it is; a folder that was not built counts as simulated."""
    built = f"{__package__}._built"
    return find_spec(built) is None or bool(import_module(built).simulated)


backend = (
    simulated_backend(__package__, "maca", "MetaX-like, simulated")
    if _is_simulated()
    else device_backend(__package__, "maca", "MetaX")
)
