"""The manifest of numpy: what is known of it before any kernel is loaded."""

from collections.abc import Mapping

from spikingbrain_hal import Backend, DeviceProperties, Kernel


def load() -> Mapping[str, Kernel]:
    from .kernels import KERNELS

    return KERNELS


backend = Backend(
    name="numpy",
    vendor="numpy",
    device_type="cpu",
    probe=lambda: None,  # why it cannot run here, None if it can
    load=load,
    properties=lambda: DeviceProperties("numpy"),
    priority=-1,  # below that of the built-in backends, 0: chosen by name only
)
