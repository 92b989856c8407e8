"""Which backend serves a device type: discovery, choice, and what each was chosen or refused for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

import torch

from ..backend.backend import Backend, Kernel
from ..backend.plugin import Found, Unusable, find, load_kernels, usable
from ..errors import BackendUnavailable
from .scopes import Scope, Scopes

GROUP = "spikingbrain_hal.backends"
REFERENCE = "reference"


@dataclass(frozen=True)
class Active:
    """The backend that owns a device type now.

    Attributes:
        backend: None for the reference.
        kernels: By operator name; only those whose version matches the declaration.
        refused: Operator name to the reason its kernel is not used.
        strict: An unsupported call raises instead of running the reference.
        reason: Why this backend was chosen.
        check_contents: The dispatcher looks at the values of arguments before each call.
    """

    backend: Backend | None
    kernels: Mapping[str, Kernel]
    refused: Mapping[str, str]
    strict: bool
    reason: str
    check_contents: bool = False

    @property
    def name(self) -> str:
        return self.backend.name if self.backend else REFERENCE


class Pinned(threading.local):
    """The backend that a thread's running backward is held to."""

    active: Active | None = None


_lock = threading.RLock()


def _renew_lock() -> None:
    """Another thread may have held it at a fork, and is not there in the child to let it go."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
_found: dict[str, Found] = {}
_loaded: dict[str, tuple[dict[str, Kernel], dict[str, str]]] = {}
_chosen: dict[str, Active] = {}  # by device type, for where nobody has selected
_scopes: dict[str, Scopes] = {}
ACTIVE: dict[str, Active] = {}  # what serves every thread; absent until it is known, and where blocks may differ
PINNED: dict[str, Pinned] = {}


def installed_backends() -> dict[str, Found]:
    """Every installed backend by name. Reads entry points; loads no native code."""
    with _lock:
        if not _found:
            offers: dict[str, dict[str, EntryPoint]] = {}
            for entry in entry_points(group=GROUP):
                offers.setdefault(entry.name, {})[entry.value] = entry
            _found.update((name, find(name, [*entries.values()])) for name, entries in offers.items())
        return dict(_found)


def register_backend(backend: Backend) -> None:
    """Adds a backend that has no entry point: a Python-callable one, or one under development.

    Raises:
        ValueError: The name is taken.
    """
    with _lock:
        if backend.name in installed_backends() or backend.name == REFERENCE:
            raise ValueError(f"there is already a backend named {backend.name!r}")
        _found[backend.name] = Found(backend.name, backend, None)


def unregister_backend(name: str) -> None:
    """Takes back :func:`register_backend`.

    Raises:
        RuntimeError: A ``with use_backend`` block that selects it is open.
    """
    with _lock:
        if any(active.name == name for scopes in _scopes.values() for s in scopes.blocks for active, _ in s.made):
            raise RuntimeError(f"backend {name!r} is selected by a use_backend() block that is open")
        _found.pop(name, None)
        _loaded.pop(name, None)
        for scopes in _scopes.values():
            scopes.process.made[:] = [(active, ref) for active, ref in scopes.process.made if active.name != name]
        for device_type in [d for d, a in _chosen.items() if a.name == name]:
            del _chosen[device_type]
        for device_type in _scopes.keys() | ACTIVE.keys():
            _publish(device_type)


def _installed(name: str) -> Found:
    found = installed_backends().get(name)
    if found is None:
        close = get_close_matches(name, installed_backends(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(sorted(installed_backends())) or "none"
        raise BackendUnavailable(f"there is no backend {name!r}.{hint} Installed: {known}")
    return found


def load(backend: Backend) -> tuple[dict[str, Kernel], dict[str, str]]:
    """The backend's kernels that match the declarations, and why the others do not serve; loaded once.

    Raises:
        Unusable: It does not load, or loads something else than kernels.
    """
    with _lock:
        if backend.name not in _loaded:
            _loaded[backend.name] = load_kernels(backend)
        return _loaded[backend.name]


def _activate(name: str, strict: bool, reason: str, device_type: str | None = None) -> Active:
    if name == REFERENCE:
        return Active(None, {}, {}, strict=False, reason=reason)
    backend = usable(_installed(name))
    if device_type and backend.device_type != device_type:
        raise BackendUnavailable(f"backend {name!r} serves {backend.device_type}, not {device_type}")
    kernels, refused = load(backend)
    check_contents = not backend.checks_contents and os.environ.get("SBHAL_CHECK") == "1"
    return Active(backend, kernels, refused, strict, reason, check_contents)


def _choose(device_type: str) -> Active:
    forced = os.environ.get("SBHAL_BACKEND", "")
    if forced == REFERENCE:
        return _activate(REFERENCE, strict=False, reason="SBHAL_BACKEND=reference")
    if forced:
        backend = _installed(forced).backend
        if backend is None or backend.device_type == device_type:  # a broken one may be meant for any
            return _activate(forced, strict=True, reason=f"SBHAL_BACKEND={forced}")
    candidates = []
    for found in installed_backends().values():
        if found.backend and found.backend.device_type == device_type and not found.backend.simulated:
            with contextlib.suppress(Unusable):
                candidates.append(usable(found))
    if not candidates:
        return _activate(REFERENCE, strict=False, reason=f"no backend serves {device_type} here")
    best = max(candidates, key=lambda b: b.priority)
    rivals = [b.name for b in candidates if b.priority == best.priority and b is not best]
    if rivals:
        raise BackendUnavailable(
            f"backends {best.name} and {', '.join(rivals)} both serve {device_type}; "
            "choose one with SBHAL_BACKEND or use_backend()"
        )
    return _activate(best.name, strict=False, reason=f"the available backend for {device_type}")


def current(device_type: str) -> Active:
    """The backend that serves tensors of this device type on this thread, chosen on first use."""
    pinned = PINNED.get(device_type)
    if pinned is not None and pinned.active is not None:
        return pinned.active
    active = ACTIVE.get(device_type)
    if active is None:
        with _lock:
            active = _scopes.setdefault(device_type, Scopes()).here()
            if active is None:
                if device_type not in _chosen:
                    _chosen[device_type] = _choose(device_type)
                active = _chosen[device_type]
            _publish(device_type)
    return active


def _publish(device_type: str) -> None:
    """Brings ACTIVE up to date, which calls look at first."""
    scopes = _scopes.setdefault(device_type, Scopes())
    active = scopes.everywhere() or (None if scopes.blocks else _chosen.get(device_type))
    if active is None:
        ACTIVE.pop(device_type, None)
    else:
        ACTIVE[device_type] = active


@contextlib.contextmanager
def pinned(device_type: str, active: Active) -> Iterator[None]:
    """Runs a backward on the backend of its forward, on this thread only, whatever is selected by then."""
    place = PINNED.setdefault(device_type, Pinned())
    before = place.active
    place.active = active
    try:
        yield
    finally:
        place.active = before


class use_backend:
    """Selects a backend for its device type, strictly: an unsupported call raises UnsupportedOp.

    As a call it holds from then on, in a block until that ends. ``with use_backend(...)`` makes a block of its own: it
    holds on the thread or task that entered it, and wherever no other block has been entered, until it is left. Blocks
    may overlap and be left in any order. ``"reference"`` selects the plain PyTorch references of the given device type.

    Args:
        name: A backend's name, or ``"reference"``.
        device_type: Only needed for the reference; ``"cpu"`` if absent.

    Raises:
        BackendUnavailable: It is not installed, or finds no device; the message gives the reason.
        RuntimeError: Called inside a compiled region, where it would silently run the backend compiled in; or one
            object is entered twice.
    """

    def __init__(self, name: str, device_type: str | None = None) -> None:
        _refuse_compiled()
        with _lock:
            active = _activate(name, strict=True, reason=f"use_backend({name!r})", device_type=device_type)
            self._active = active
            self._device_type = active.backend.device_type if active.backend else device_type or "cpu"
            self._scopes = _scopes.setdefault(self._device_type, Scopes())
            self._made_in = self._scopes.own() or self._scopes.process
            self._block: Scope | None = None
            self._made_in.add(active, self)
            _publish(self._device_type)

    def __enter__(self) -> None:
        _refuse_compiled()
        with _lock:
            if self._block is not None:
                raise RuntimeError(f"use_backend({self._active.name!r}) is entered again: make one for each block")
            self._made_in.drop(self)
            self._block = self._scopes.enter(self._active, self)
            _publish(self._device_type)

    def __exit__(self, *_: object) -> None:
        with _lock:
            if self._block is None:
                raise RuntimeError(f"use_backend({self._active.name!r}) is left and was not entered")
            self._scopes.leave(self._block)
            _publish(self._device_type)


def _refuse_compiled() -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError("use_backend() cannot be called inside a compiled region")
