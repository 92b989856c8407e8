"""What torch and transformers must see, and must not see, while stand-ins are installed."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from . import jiterator


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


@contextlib.contextmanager
def announced_to_transformers() -> Iterator[None]:
    """Makes transformers take flash-attn for installed, on any device; its ``is_flash_attn_2_available`` is True.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        checks: Any = importlib.import_module("transformers.utils.import_utils")
        attention: Any = importlib.import_module("transformers.modeling_flash_attention_utils")
    except ImportError as error:
        raise ImportError("announce=True needs transformers: pip install 'spikingbrain-hal[models]'") from error
    name = "is_flash_attn_2_available"
    requirements = getattr(attention, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", {}).get(2, {})  # since 5
    original: Callable[..., bool] = getattr(checks, name)
    active = True

    def is_flash_attn_2_available(*args: Any, **kwargs: Any) -> bool:
        return active or original(*args, **kwargs)

    def replace(old: object, new: object) -> None:
        modules = [m for key, m in list(sys.modules.items()) if key.split(".")[0] == "transformers"]
        holders = [vars(m) for m in modules if isinstance(m, ModuleType)]
        for holder in (*holders, requirements):
            for key in (name, "general_availability_check"):
                if holder.get(key) is old:
                    holder[key] = new
        _forget(checks)

    replace(original, is_flash_attn_2_available)
    try:
        yield
    finally:
        active = False  # a module that imports transformers' function in the meantime keeps ours
        replace(is_flash_attn_2_available, original)


def _forget(module: Any) -> None:
    """Clears what the functions of a module remember."""
    for function in list(vars(module).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
