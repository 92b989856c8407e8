"""The CPU backend: kernels compiled for several instruction sets, one chosen when the module loads."""

from spikingbrain_hal.backend import host_backend

backend = host_backend(__package__, "cpu", "any x86-64 or aarch64 processor")
