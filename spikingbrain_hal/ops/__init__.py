"""The operators: this folder publishes the function of every operator that a module in one of its families declares."""

import sys
from importlib import import_module
from pkgutil import walk_packages

from ..declare.registry import OPERATORS

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
__all__ = [_spec.name for _spec in OPERATORS.values() if _spec.forward is None]
for _name in __all__:
    globals()[_name] = getattr(sys.modules[OPERATORS[_name].reference.__module__], _name)
