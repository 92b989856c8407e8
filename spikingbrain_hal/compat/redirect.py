"""CUDA devices that mean another device, for scripts that name them outright."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class CudaRedirected(TorchFunctionMode):
    """While it is active, ``.cuda()``, ``.to("cuda")`` and ``device="cuda"`` mean another device, in this thread.

    ``torch.cuda`` itself is untouched: ``torch.cuda.is_available()`` says what is there.

    Args:
        device: The device that takes CUDA's place.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch with the device put in CUDA's place."""
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return self._placed(func(*args, **kwargs))
        if (
            func is Tensor.cuda
        ):  # (self, device=None, non_blocking=False), of which Tensor.to has the first two in common
            kwargs.pop("device", None)
            options = dict(zip(("non_blocking", "memory_format"), args[2:], strict=False))
            return args[0].to(self.device, **options, **kwargs)
        if func is Tensor.to:
            args = tuple(self._placed(value) for value in args)
        if "device" in kwargs:
            kwargs["device"] = self._placed(kwargs["device"])
        return func(*args, **kwargs)

    def _placed(self, value: Any) -> Any:
        """The device, for any of CUDA's; a bare number is one of those, as torch reads it."""
        name = value.type if isinstance(value, torch.device) else value
        if isinstance(name, str):
            return self.device if name.split(":")[0] == "cuda" else value
        return self.device if isinstance(name, int) and not isinstance(name, bool) else value
