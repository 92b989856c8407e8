"""AMD GPUs, through ROCm."""

from spikingbrain_hal.backend import device_backend

backend = device_backend(__package__, "rocm", "AMD")
