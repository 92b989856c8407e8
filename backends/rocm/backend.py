"""AMD GPUs, through ROCm."""

from spikingbrain_hal.gpu import device_backend

backend = device_backend(__package__, "rocm", "AMD")
