"""What an installed backend's own code says, and whose fault it is if that fails: entry point, probe, load."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from itertools import zip_longest
from typing import Any

import torch

from ..declare.registry import OPERATORS
from ..declare.spec import OpSpec
from ..errors import BackendUnavailable
from .backend import Backend, Kernel

_ATTRIBUTES = {"float": "d", "int": "i", "bool": "b", "str": "s"}


@dataclass(frozen=True)
class Found:
    """An installed backend, or the reason its package does not load."""

    name: str
    backend: Backend | None
    problem: str | None


class Unusable(BackendUnavailable):
    """A backend that is installed and cannot be used.

    Attributes:
        reason: Why, without the backend's name, which the message begins with.
        broken: The backend is not what it has to be, for its makers to mend; else it only cannot run here.
    """

    def __init__(self, name: str, reason: str, broken: bool = True) -> None:
        super().__init__(f"backend {name!r} is not available: {reason}")
        self.reason, self.broken = reason, broken


def find(name: str, entries: Sequence[EntryPoint]) -> Found:
    """What the entry points of one name lead to: a backend of that name, or the reason that they do not."""
    if len(entries) > 1:
        packages = sorted(entry.dist.name if entry.dist else entry.value for entry in entries)
        return Found(name, None, f"{len(entries)} packages offer it: {', '.join(packages)}")
    try:
        backend = entries[0].load()
        if not isinstance(backend, Backend):
            raise TypeError(f"{entries[0].value} is a {type(backend).__name__}, expected a Backend")
    except Exception as error:  # a broken plug-in must not take the others with it
        return Found(name, None, f"{type(error).__name__}: {error}")
    if backend.name != name:
        return Found(name, None, f"its manifest is named {backend.name!r}, its entry point {name!r}")
    return Found(name, backend, None)


@contextlib.contextmanager
def blaming(name: str, failure: str) -> Iterator[None]:
    """Whatever a backend's own code raises is said of that backend.

    Args:
        name: The backend's name.
        failure: What it means that the code raises.

    Raises:
        Unusable: The code raised.
    """
    try:
        yield
    except Exception as error:
        raise Unusable(name, f"{failure}: {type(error).__name__}: {error}") from error


def usable(found: Found) -> Backend:
    """The backend, which can run here.

    Raises:
        Unusable: It cannot, or it is broken.
    """
    if found.backend is None:
        raise Unusable(found.name, f"{found.problem}")
    with blaming(found.name, "its probe fails"):
        reason = found.backend.probe()
        if reason is not None and not (isinstance(reason, str) and reason):
            raise TypeError(f"probe returned {reason!r}, expected None or the reason")
    if reason is not None:
        raise Unusable(found.name, reason, broken=False)
    return found.backend


def load_kernels(backend: Backend) -> tuple[dict[str, Kernel], dict[str, str]]:
    """The backend's kernels that match the declarations, and why the others do not serve.

    Raises:
        Unusable: It does not load, or loads something else than kernels.
    """
    with blaming(backend.name, "it does not load"):
        offered = _offered(backend)
    kernels, refused = {}, {}
    for name, kernel in offered.items():
        spec = OPERATORS.get(name)
        if spec is None:
            refused[name] = "this version declares no such operator"
        elif kernel.version != spec.version:
            refused[name] = (
                f"the kernel was built for version {kernel.version} of the operator, "
                f"this is version {spec.version}; reinstall the backend"
            )
        else:
            with blaming(backend.name, "it does not load"):
                _compare(spec, kernel.signature)
            kernels[name] = _shielded(kernel, backend.device_type)
    for name in OPERATORS.keys() - offered.keys():
        refused[name] = "the backend has no kernel for it"
    return kernels, refused


def _shielded(kernel: Kernel, device_type: str) -> Kernel:
    """The kernel, whose Python functions autocast and grad mode of the caller do not reach."""

    def shield(function: Callable[..., None]) -> Callable[..., None]:
        if inspect.isbuiltin(function):  # native code calls no torch
            return function

        @functools.wraps(function)
        def shielded(*args: Any) -> None:
            with torch.no_grad(), torch.autocast(device_type, enabled=False):
                function(*args)

        return shielded

    run = None if kernel.run is None else shield(kernel.run)
    return kernel._replace(launch=shield(kernel.launch), run=run)


def signature_of(spec: OpSpec) -> str:
    """The names and types of an operator's arguments in order, as native modules say theirs: ``x:T k:d counts:R``.

    T is a tensor, O one that may be absent, W one that is written in place, R a result; d, i, b and s are float, int,
    bool and str.
    """
    parts = [f"{n}:{'W' if n in spec.mutates else 'O' if n in spec.optional else 'T'}" for n in spec.inputs]
    parts += [f"{n}:{_ATTRIBUTES[p.annotation]}" for n, p in spec.attributes.items()]
    return " ".join([*parts, *(f"{n}:R" for n in spec.outputs)])


def _compare(spec: OpSpec, signature: str | None) -> None:
    """Raises TypeError unless a kernel takes its arguments as they are declared; one without names by types alone."""
    if signature is None:
        return
    declared, found = signature_of(spec).split(), signature.split()
    if ":" not in signature:
        declared = [d[-1].replace("T", "O").replace("W", "O") for d in declared]
    for place, (ours, theirs) in enumerate(zip_longest(declared, found, fillvalue="nothing"), 1):
        if ours != theirs:
            raise TypeError(f"argument {place} of {spec.name} is {theirs}, where the declaration has {ours}")


def _offered(backend: Backend) -> Mapping[str, Kernel]:
    offered = backend.load()
    if not isinstance(offered, Mapping):
        raise TypeError(f"load returned a {type(offered).__name__}, expected a mapping of operator names to Kernels")
    for name, kernel in offered.items():
        if not isinstance(kernel, Kernel):
            raise TypeError(f"{name} is a {type(kernel).__name__}, expected a Kernel")
    return offered


def undeclared(name: str, offered: Iterable[str]) -> list[str]:
    """A sentence for each operator that this version does not declare, among those that a backend offers."""
    found = []
    for operator in sorted(set(map(str, offered)) - OPERATORS.keys()):
        close = get_close_matches(operator, OPERATORS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        found.append(f"backend {name} offers {operator}, which this version does not declare{hint}")
    return found
