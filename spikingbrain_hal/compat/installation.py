"""Puts the stand-ins in place of absent libraries, and takes them away again."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType, TracebackType
from typing import ParamSpec

import torch

from . import fla as fla_library
from . import flash_attn as flash_attn_library
from . import frameworks
from . import int2spike as int2spike_library
from . import triton as triton_library
from .buffers import KeptBuffers
from .finder import CompatDistribution, CompatFinder, CompatLoader, Table, installed_spec
from .fla import Names
from .frameworks import FlashAttnAnswers
from .notices import CompatWarning

# What shows that an installed library can be used, and whether it computes on GPUs only.
PROBES = {
    "fla": ("fla.ops.gla", True),
    "flash_attn": ("flash_attn", True),
    "Int2Spike": ("Int2Spike.neuron", False),
    "triton": ("triton", False),
    "moba": (None, False),
}

P = ParamSpec("P")

_lock = threading.RLock()
_active: list[Installation] = []


class Installation:
    """One set of stand-ins; a context manager. The import system belongs to the process, so its effect does too.

    Args:
        tables: The modules of each library.
        override: Shadow libraries that are installed and work.
        version: The version that flash_attn says it is, or None.
        announce: Let metadata and frameworks see flash_attn.
    """

    def __init__(self, tables: Mapping[str, Table], override: bool, version: str | None, announce: bool) -> None:
        self._tables, self._override, self._version, self._announce = tables, override, version, announce
        self._displaced: dict[str, ModuleType] = {}
        self._undo = contextlib.ExitStack()
        self.libraries: tuple[str, ...] = ()
        self.finder: CompatFinder | None = None

    def __enter__(self) -> Installation:
        """Installs.

        Raises:
            RuntimeError: It is installed already.
        """
        with _lock:
            if self.finder is not None:
                raise RuntimeError("spikingbrain_hal.compat: this installation is active already")
            self.libraries = tuple(name for name in self._tables if self._wanted(name))
            table = {name: names for library in self.libraries for name, names in self._tables[library].items()}
            version = self._version if "flash_attn" in self.libraries else None
            answers = None if version is None else FlashAttnAnswers(version, self._announce)
            announced = answers if answers and answers.announced else None
            changes: list[KeptBuffers | FlashAttnAnswers] = [KeptBuffers(), *([answers] if answers else [])]
            self.finder = CompatFinder(
                table,
                visible=("flash_attn",) if announced else (),
                distributions=[CompatDistribution("flash-attn", announced.version, "flash_attn")] if announced else [],
                before_loading=lambda library: frameworks.settle_triton() if library == "triton" else None,
                after_loading={change.module: change.give for change in changes},
            )
            self._displaced = {n: m for n, m in list(sys.modules.items()) if n.split(".")[0] in self.finder.roots}
            for name in self._displaced:
                del sys.modules[name]
            sys.meta_path.insert(0, self.finder)
            _active.append(self)
            try:
                self._undo.enter_context(frameworks.jiterator_everywhere(self._override))
                for change in changes:
                    self._undo.callback(change.take_back)
                    if change.module in sys.modules:
                        change.give(sys.modules[change.module])
                if announced:
                    announced.require_transformers()
            except BaseException:
                self.uninstall()
                raise
            return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Uninstalls."""
        self.uninstall()

    def uninstall(self) -> None:
        """Takes the stand-ins away and puts back what they displaced. What clients hold of them goes on working.

        Raises:
            RuntimeError: It is not installed, or another one was installed after it and still is.
        """
        with _lock:
            if self.finder is None:
                raise RuntimeError("spikingbrain_hal.compat: this installation is not active")
            if _active[-1] is not self:
                raise RuntimeError("spikingbrain_hal.compat: uninstall what was installed after this first")
            _active.pop()
            self._undo.close()
            sys.meta_path.remove(self.finder)
            for name, module in list(sys.modules.items()):
                if self._ours(module):
                    del sys.modules[name]
                    parent, _, child = name.rpartition(".")
                    holder = sys.modules.get(parent)
                    if holder is not None and vars(holder).get(child) is module:
                        delattr(holder, child)
            sys.modules.update(self._displaced)
            self._displaced, self.finder = {}, None

    def _ours(self, module: ModuleType) -> bool:
        loader = _loader(module)
        return loader is not None and loader.finder is self.finder

    def _wanted(self, library: str) -> bool:
        """Whether to install the stand-in of a library: it is absent, or does not work, or shall be shadowed."""
        origin = _origin(library)
        if origin is None:
            return True
        place = f"spikingbrain_hal.compat: {library} is installed ({origin})"
        if self._override:
            warnings.warn(f"{place}; its stand-in shadows it", CompatWarning, stacklevel=4)
            return True
        reason = self._fails(library)
        if reason is None:
            message = f"{place} and works, so it stays; override=True shadows it"
        else:
            message = f"{place} but can't be used here ({reason}); its stand-in shadows it"
        warnings.warn(message, CompatWarning, stacklevel=4)
        return reason is not None

    @staticmethod
    def _fails(library: str) -> str | None:
        """Why an installed library can't be used; None if it can."""
        module, needs_gpu = PROBES[library]
        if module is None:
            return None
        if needs_gpu and not torch.accelerator.is_available():
            return "no GPU is available"
        try:
            importlib.import_module(module)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None


def _loader(module: ModuleType | None) -> CompatLoader | None:
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    return loader if isinstance(loader, CompatLoader) else None


def _origin(library: str) -> str | None:
    """Where an installed library lies; None if there is none. A folder without ``__init__.py`` is none."""
    module = sys.modules.get(library)
    if module is not None and _loader(module) is None:
        return str(getattr(module, "__file__", None) or "already imported")
    spec = installed_spec(library)
    return None if spec is None else spec.origin


def installed(
    fla: str | None = "current",
    flash_attn: str | None = flash_attn_library.VERSION,
    int2spike: bool = True,
    triton: bool = True,
    *,
    strict: bool = False,
    override: bool = False,
    announce: bool = False,
) -> Installation:
    """A context in which fla, flash_attn, Int2Spike, moba and triton can be imported without being installed.

    Args:
        fla: Which version's arguments and layout: ``"0.1"`` ([B, H, T, D], SpikingBrain 1.0), ``"0.4"``
            (SpikingBrain 2.0) or ``"current"``, both [B, T, H, D]; None leaves fla out.
        flash_attn: Which version flash_attn says it is; None leaves it out.
        int2spike: Provide Int2Spike.
        triton: Provide triton, with which files that hold kernels can be imported but none launched.
        strict: Refuse fla calls whose shapes look like the other layout, instead of warning once.
        override: Shadow these libraries even where they are installed and work.
        announce: Let package metadata and transformers know of flash_attn, so that transformers accepts
            ``attn_implementation="flash_attention_2"``; otherwise they take it for absent, as torch does triton,
            and answer only client code that ``is_flash_attn_2_available()``.

    Raises:
        ValueError: fla or flash_attn is no known version.
    """
    if fla is not None and fla not in fla_library.PROFILES:
        raise ValueError(
            f"compat: fla is {fla!r}, expected one of {', '.join(map(repr, fla_library.PROFILES))} or None"
        )
    if flash_attn is not None and not all(part.isdigit() for part in flash_attn.split(".")[:2]):
        raise ValueError(f"compat: flash_attn is {flash_attn!r}, expected a version such as '2.8.3', or None")
    if announce and flash_attn is None:
        raise ValueError("compat: announce is True, expected a version of flash_attn with it")
    tables = (
        fla_library.modules(fla, strict) if fla is not None else {},
        flash_attn_library.modules(flash_attn) if flash_attn is not None else {},
        int2spike_library.modules() if int2spike else {},
        triton_library.modules() if triton else {},
    )
    libraries: dict[str, dict[str, Callable[[], Names]]] = {}
    for table in tables:
        for name, names in table.items():
            libraries.setdefault(name.split(".")[0], {})[name] = names
    return Installation(libraries, override, flash_attn, announce)


def _at_once(make: Callable[P, Installation]) -> Callable[P, Installation]:
    def install(*args: P.args, **options: P.kwargs) -> Installation:
        """As :func:`installed`, until :func:`uninstall` is called."""
        return make(*args, **options).__enter__()

    return install


install = _at_once(installed)


def uninstall() -> None:
    """Takes the latest installation away.

    Raises:
        RuntimeError: There is none.
    """
    with _lock:
        if not _active:
            raise RuntimeError("spikingbrain_hal.compat: nothing is installed")
        _active[-1].uninstall()
