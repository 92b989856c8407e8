"""Finds the modules of absent libraries: imported only when asked for, and only by those who don't merely probe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from types import FrameType, ModuleType
from typing import Any

Table = Mapping[str, Callable[[], Mapping[str, object]]]

# Frameworks that choose code paths by what can be imported. What remote code asks for is no probe.
PROBERS = frozenset({"torch", "torchvision", "torchaudio", "transformers", "accelerate", "peft", "diffusers"})
NO_PROBE = ("transformers.dynamic_module_utils",)
VENDORED = "Int2Spike"  # released code has its copy inside packages of its own


def is_framework(module: str) -> bool:
    """Whether a module is part of a framework that probes; remote code and what loads it are not."""
    return module.split(".")[0] in PROBERS and module not in NO_PROBE


def asker() -> str:
    """The module whose code is importing or asking: the first frame outside the import system and this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not f"{name}.".startswith(f"{__package__}.") and not name.startswith(("importlib", "_frozen_importlib")):
            return name
        frame = frame.f_back
    return ""


def installed_spec(fullname: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
    """Where a module comes from if not from a stand-in; None if from nowhere."""
    for finder in sys.meta_path:
        if not isinstance(finder, CompatFinder):
            spec = finder.find_spec(fullname, path)
            if spec is not None:
                return spec
    return None


class CompatLoader(Loader):
    """Fills a module from the table.

    Args:
        finder: Whose table.
        names: Gives what the module holds.
        children: Names of its submodules.
    """

    def __init__(
        self, finder: CompatFinder, names: Callable[[], Mapping[str, object]], children: Iterable[str]
    ) -> None:
        self.finder, self.names, self.children = finder, names, frozenset(children)

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module."""
        module.__doc__ = f"{module.__name__}, as spikingbrain_hal.compat provides it."
        if self.children:
            module.__dict__["__getattr__"] = self._submodule(module.__name__)
        module.__dict__.update(self.names())

    def _submodule(self, package: str) -> Callable[[str], Any]:
        def __getattr__(name: str) -> Any:
            if name in self.children:
                return importlib.import_module(f"{package}.{name}")
            raise AttributeError(f"{package} of spikingbrain_hal.compat has no {name!r}")

        return __getattr__


class _FollowedLoader(Loader):
    """Loads a module as its own loader does, then calls a function with it, before any client has seen it.

    Args:
        loader: Its own loader.
        follow: The function.
    """

    def __init__(self, loader: Loader, follow: Callable[[ModuleType], None]) -> None:
        self.loader, self.follow = loader, follow

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As its own loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As its own loader, to whom the module belongs from here on; then the function."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.follow(module)


class CompatFinder(MetaPathFinder):
    """A finder for :data:`sys.meta_path`.

    Args:
        table: What each module holds, by full name; packages above them need no entry.
        visible: Libraries that frameworks may find too.
        distributions: Metadata that :mod:`importlib.metadata` finds.
        before_loading: Called with a library's name before its first module is loaded.
        after_loading: Called with these modules of other libraries once they are loaded, by full name.
    """

    def __init__(
        self,
        table: Table,
        visible: Iterable[str] = (),
        distributions: Sequence[Distribution] = (),
        before_loading: Callable[[str], None] = lambda library: None,
        after_loading: Mapping[str, Callable[[ModuleType], None]] | None = None,
    ) -> None:
        self.table = dict(table)
        for name in table:
            parts = name.split(".")
            for length in range(1, len(parts)):
                self.table.setdefault(".".join(parts[:length]), dict)
        self.roots = frozenset(name.split(".")[0] for name in table)
        self.visible, self.distributions, self.before_loading = frozenset(visible), distributions, before_loading
        self.after_loading = dict(after_loading or {})

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module of the table, or a followed one, is from; None for any other and for those who only probe."""
        if fullname in self.after_loading:
            return self._followed(fullname, path, target)
        name = self._listed(fullname, path)
        if name is None or self._probing(fullname.split(".")[0]):
            return None
        if name not in sys.modules and "." not in name:
            self.before_loading(name)
        children = {other.split(".")[-1] for other in self.table if other.rpartition(".")[0] == name}
        loader = CompatLoader(self, self.table[name], children)
        return ModuleSpec(fullname, loader, origin="spikingbrain_hal.compat", is_package=bool(children))

    def _followed(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _FollowedLoader(spec.loader, self.after_loading[fullname])
                return spec
        return None

    def _listed(self, fullname: str, path: Sequence[str] | None) -> str | None:
        if fullname in self.table:
            return fullname
        _, found, rest = fullname.partition(f".{VENDORED}")
        name = VENDORED + rest
        if not found or name not in self.table or installed_spec(fullname, path) is not None:
            return None
        return name

    def _probing(self, root: str) -> bool:
        return root not in self.visible and is_framework(asker())

    def find_distributions(self, context: Any = None) -> Iterable[Distribution]:
        """The metadata of announced libraries."""
        context = context or DistributionFinder.Context()
        wanted = None if context.name is None else context.name.replace("-", "_").lower()
        return (d for d in self.distributions if wanted in (None, d.metadata["Name"].replace("-", "_").lower()))


class CompatDistribution(Distribution):
    """Metadata of a library that is not installed: its name, version and the package it provides."""

    def __init__(self, name: str, version: str, package: str) -> None:
        self._files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            f"Summary: provided by spikingbrain_hal.compat\n",
            "top_level.txt": f"{package}\n",
        }

    def read_text(self, filename: str) -> str | None:
        """The text of a metadata file."""
        return self._files.get(filename)

    def locate_file(self, path: Any) -> Any:
        """The path itself: there are no files."""
        return path
