"""The operators. Every module in this folder declares one and holds a function of the same name."""

from importlib import import_module
from pkgutil import iter_modules

__all__ = []
for _module in iter_modules(__path__):
    globals()[_module.name] = getattr(import_module(f"{__name__}.{_module.name}"), _module.name)
    __all__.append(_module.name)
