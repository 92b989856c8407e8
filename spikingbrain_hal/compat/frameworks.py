"""What torch and transformers must see, and must not see, while stand-ins are installed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from . import jiterator
from .finder import asker, is_framework

Function = Callable[..., Any]


def settle_triton() -> None:
    """Lets torch find out that there is no Triton, once and for all, before a stand-in can be taken for it.

    torch caches the answers of ``has_triton`` and the like, but some of its modules try the import themselves when
    they are loaded. The finder hides the stand-in from both, until a client's import has put it where all can see it.
    """
    from torch.utils import _triton

    for name, function in list(vars(_triton).items()):
        if name.startswith(("has_", "get_triton")) and hasattr(function, "cache_clear"):
            with contextlib.suppress(Exception):  # a torch that can't answer has nothing to be misled about
                function()
    for module in ("torch._inductor.runtime.triton_compat", "torch.utils.flop_counter"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


@contextlib.contextmanager
def jiterator_everywhere(override: bool) -> Iterator[None]:
    """Makes ``torch.cuda.jiterator`` compute without a GPU; with override, with one too."""
    if torch.cuda.is_available() and not override:
        yield
        return
    import torch.cuda.jiterator as original

    names = {
        "_create_jit_fn": jiterator.create_jit_fn,
        "_create_multi_output_jit_fn": jiterator.create_multi_output_jit_fn,
    }
    before = {name: getattr(original, name) for name in names}
    for name, function in names.items():
        setattr(original, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(original, name, function)


class FlashAttnAnswers:
    """Answers transformers' questions for flash-attn while a stand-in is installed.

    Client code that asks means to use it and hears yes; frameworks hear what transformers finds out by itself, unless
    the stand-in is announced to them.

    Args:
        version: The version that flash-attn says it is.
        announced: Answer frameworks too, on any device.
    """

    module = "transformers.utils.import_utils"

    def __init__(self, version: str, announced: bool) -> None:
        self.version, self.announced, self.active = version, announced, True
        self._given: list[tuple[ModuleType, Function, Function]] = []

    def require_transformers(self) -> None:
        """Loads the modules of transformers that ask.

        Raises:
            ImportError: transformers is not installed.
        """
        try:
            importlib.import_module(self.module)
            importlib.import_module("transformers.modeling_flash_attention_utils")
        except ImportError as error:
            raise ImportError("announce=True needs transformers: pip install 'spikingbrain-hal[models]'") from error

    def give(self, checks: ModuleType) -> None:
        """Puts the answers in place of the functions of :attr:`module`, wherever transformers holds them."""
        answers: dict[str, Callable[..., bool]] = {
            "is_flash_attn_2_available": lambda *args, **kwargs: True,
            "is_flash_attn_greater_or_equal": self._at_least,
            "is_flash_attn_greater_or_equal_2_10": lambda: self._at_least("2.1.0"),
        }
        for name, answer in answers.items():
            original = getattr(checks, name, None)
            if original is not None:
                self._given.append((checks, original, self._instead(original, answer)))
                _replace(*self._given[-1])

    def take_back(self) -> None:
        """Puts transformers' own functions back; a module that took an answer in the meantime hears them through it."""
        self.active = False
        for checks, original, ours in self._given:
            _replace(checks, ours, original)

    def _instead(self, original: Function, answer: Callable[..., bool]) -> Function:
        @functools.wraps(original)
        def asked(*args: Any, **kwargs: Any) -> bool:
            if self.active and (self.announced or not is_framework(asker())):
                return answer(*args, **kwargs)
            return bool(original(*args, **kwargs))

        return asked

    def _at_least(self, library_version: str) -> bool:
        from packaging.version import parse  # transformers, which asks, needs it too

        return parse(self.version) >= parse(library_version)


def _replace(checks: ModuleType, old: Function, new: Function) -> None:
    """Puts a function in place of another in all of transformers that is loaded."""
    modules = [m for key, m in list(sys.modules.items()) if key.split(".")[0] == "transformers"]
    attention = sys.modules.get("transformers.modeling_flash_attention_utils")
    requirements = getattr(attention, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", {}).get(2, {})  # since 5
    for holder in (*(vars(m) for m in modules if isinstance(m, ModuleType)), requirements):
        for key in (old.__name__, "general_availability_check"):
            if holder.get(key) is old:
                holder[key] = new
    _forget(checks)


def _forget(module: ModuleType) -> None:
    """Clears what the functions of a module remember."""
    for function in list(vars(module).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
