"""The manifest of scalar: what is known of it before any kernel is loaded."""

from spikingbrain_hal.backend import host_backend

# A priority below that of the built-in backends, 0: chosen by name only.
backend = host_backend(__package__, "scalar", vendor="scalar", priority=-1)
