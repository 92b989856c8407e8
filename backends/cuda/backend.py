"""NVIDIA GPUs, through CUDA."""

from spikingbrain_hal.gpu import device_backend

backend = device_backend(__package__, "cuda", "NVIDIA")
