"""The declared operators, and the torch library they live in."""

import torch

from .spec import NAMESPACE, OpSpec

LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPERATORS: dict[str, OpSpec] = {}
