"""NVIDIA GPUs, through CUDA."""

from spikingbrain_hal.backend import device_backend

backend = device_backend(__package__, "cuda", "NVIDIA")
