"""Buffers that constructors of client models compute, which transformers 5 builds without memory and then forgets."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .finder import is_framework
from .notices import CompatWarning

Function = Callable[..., Any]


class KeptBuffers:
    """Lets models of client code come out of ``from_pretrained`` with the buffers that their constructors computed.

    Since 5, transformers runs constructors on the meta device and puts uninitialised memory in place of the buffers
    that a checkpoint doesn't hold. One that can't be kept is filled with NaN, and a warning names it.
    """

    module = "transformers.modeling_utils"

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}
        self._model: Any = None

    def give(self, modeling: ModuleType) -> None:
        """Changes how ``PreTrainedModel`` of :attr:`module` is built; before transformers 5 nothing needs it."""
        self._model = modeling.PreTrainedModel
        if not hasattr(self._model, "_move_missing_keys_from_meta_to_device"):
            return
        for name, changed in (
            ("get_init_context", _building),
            ("_move_missing_keys_from_meta_to_device", _moving),
            ("_initialize_missing_keys", _initializing),
        ):
            before = self._before[name] = vars(self._model)[name]
            wrapped = isinstance(before, classmethod)
            function = changed(before.__func__ if wrapped else before)
            setattr(self._model, name, classmethod(function) if wrapped else function)

    def take_back(self) -> None:
        """Puts transformers' own methods back."""
        for name, before in self._before.items():
            setattr(self._model, name, before)
        self._before = {}


class _ParametersOnMeta(TorchFunctionMode):
    """Gives ``torch.empty``, of which parameters are made, no memory; whatever computes a value has some.

    transformers asks ``torch.tensor([])`` for the device in force, and doesn't initialize on meta.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        valueless = func is torch.empty or (func is torch.tensor and len(args) == 1 and args[0] == [])
        if valueless and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _is_client(model: type) -> bool:
    return not is_framework(model.__module__) and not model.__module__.startswith("spikingbrain_hal.")


def _building(original: Function) -> Function:
    @functools.wraps(original)
    def get_init_context(cls: type, *args: Any, **kwargs: Any) -> list[Any]:
        contexts = original(cls, *args, **kwargs)
        if not _is_client(cls):
            return list(contexts)
        meta = torch.device("meta")
        return [_ParametersOnMeta() if isinstance(c, torch.device) and c == meta else c for c in contexts]

    return get_init_context


def _moving(original: Function) -> Function:
    @functools.wraps(original)
    def move(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        built = dict(self.named_buffers())
        original(self, *args, **kwargs)
        for name, buffer in self.named_buffers():
            if buffer is not built[name] and not built[name].is_meta:
                buffer.copy_(built[name])
                buffer._is_hf_initialized = True  # type: ignore[attr-defined]  # as transformers marks what it has read

    return move


def _initializing(original: Function) -> Function:
    @functools.wraps(original)
    def initialize(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        waiting = {n: (b, b._version) for n, b in self.named_buffers() if not hasattr(b, "_is_hf_initialized")}
        original(self, *args, **kwargs)
        found = dict(self.named_buffers()) if _is_client(type(self)) else {}
        lost = [n for n, (b, version) in waiting.items() if found.get(n) is b and b._version == version]
        for name in lost:
            buffer = found[name]
            buffer.fill_(torch.nan if buffer.is_floating_point() or buffer.is_complex() else 0)
        if lost:
            warnings.warn(
                f"spikingbrain_hal.compat: {type(self).__name__}: transformers has lost what the constructor put into "
                f"{', '.join(lost)}; set them, or build the model with a transformers before 5",
                CompatWarning,
                stacklevel=2,
            )

    return initialize
