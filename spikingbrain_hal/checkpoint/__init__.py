"""A checkpoint's folder, read without trust: nothing in it is run, leads out of it, or is believed unchecked."""

from .folder import read_config, read_tensors, weight_map, without_code
from .tensors import CheckpointError, Stored

__all__ = ["CheckpointError", "Stored", "read_config", "read_tensors", "weight_map", "without_code"]
