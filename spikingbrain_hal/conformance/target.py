"""The backend under test, called in two ways: as a model calls it, and directly with hostile memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from .. import selection
from ..autograd import call
from ..backend import Backend, Kernel
from ..errors import StrideError, UnsupportedOp
from ..registry import OPERATORS
from ..spec import OpSpec
from ..testing import poison
from .judge import Mismatch
from .truth import Named, named_results

GUARD = 512
GUARD_BYTE = 0xA5


class NotRun(Exception):
    """A check cannot be made here, for lack of memory for example; the message says why."""


@dataclass(frozen=True)
class Opened:
    """What is known of a backend once a process has opened it: what a run is planned by.

    Attributes:
        name: The backend's name.
        device_type: The torch device type of its tensors.
        served: The operators that it has kernels for.
        offered: The operators that it says it has, whatever their version.
        published: Whether an installed package names it, in an entry point.
    """

    name: str
    device_type: str
    served: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    published: bool = False

    @property
    def on_host(self) -> bool:
        """Whether its tensors lie in host memory, where there are no copies, streams or events."""
        return self.device_type == "cpu"


class Lied(AssertionError):
    """A plan accepted a call that its launch then called unsupported."""


@dataclass(frozen=True)
class Target:
    """One backend, selected strictly for as long as the suite runs.

    Attributes:
        backend: The backend.
        kernels: Its kernels by operator.
        refused: Why the other operators have none.
        offered: The operators that it says it has, whatever their version.
    """

    backend: Backend
    kernels: dict[str, Kernel] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    offered: frozenset[str] = frozenset()

    @property
    def device(self) -> str:
        """The torch device type of its tensors."""
        return self.backend.device_type

    def opened(self) -> Opened:
        """What other processes need to know of it."""
        published = self.backend.name in entry_points(group=selection.GROUP).names
        served = tuple(op for op in OPERATORS if op in self.kernels)
        return Opened(self.backend.name, self.device, served, tuple(self.offered), published)

    def stream(self) -> int:
        """The handle of the current stream, 0 on a CPU."""
        return 0 if self.device == "cpu" else int(torch.cuda.current_stream().cuda_stream)

    def call(self, spec: OpSpec, args: Sequence[Any]) -> Named:
        """Runs an operator through torch's dispatcher.

        Raises:
            UnsupportedOp: The backend has no kernel for the call.
            Lied: Its plan accepts the call and its launch does not.
        """
        try:
            return named_results(spec, spec.raw, args)
        except UnsupportedOp:
            self._expect_refusal(spec, args)
            raise

    def _expect_refusal(self, spec: OpSpec, args: Sequence[Any]) -> None:
        kernel = self.kernels.get(spec.name)
        if kernel is None:
            return
        copies = [a.contiguous() if isinstance(a, Tensor) else a for a in args]
        try:
            kernel.plan(*copies)
        except (UnsupportedOp, StrideError):
            return
        raise Lied(f"{spec.name}: the plan accepts a call that the launch calls unsupported")

    def differentiable(self, spec: OpSpec, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """Runs an operator as a public function does, with autograd."""
        results = call(spec, *args)
        return results if isinstance(results, tuple) else (results,)

    def launch(
        self,
        spec: OpSpec,
        args: Sequence[Any],
        threads: int = 1,
        fill: Callable[[Tensor], Any] = poison,
    ) -> Named:
        """Plans and launches directly, outputs and workspace filled with ``fill`` and guarded on both sides.

        Raises:
            Mismatch: Memory outside an output or the workspace was written, or an input was.
        """
        call = Launch(self, spec, args, fill)
        call.run(threads)
        call.check_memory()
        return call.results()


class Launch:
    """One direct call of a kernel: its own copies of the inputs, guarded outputs, a guarded workspace."""

    def __init__(
        self, target: Target, spec: OpSpec, args: Sequence[Any], fill: Callable[[Tensor], Any] = poison
    ) -> None:
        kernel = target.kernels.get(spec.name)
        if kernel is None:
            raise UnsupportedOp(target.refused.get(spec.name, "the backend has no kernel for it"))
        self.target, self.spec, self.kernel, self.fill = target, spec, kernel, fill
        self.given = [a.contiguous() if isinstance(a, Tensor) else a for a in args]
        self.args = [a.clone() if isinstance(a, Tensor) else a for a in self.given]
        self.guards: list[tuple[str, Tensor, Tensor]] = []

    def allocate(self, like: Sequence[Any] | None = None) -> None:
        """Makes the outputs of this call, or of one with the arguments ``like``."""
        shapes = self.spec.allocate(*(self.args if like is None else like))
        self.outputs = [
            self._guarded(name, tuple(t.shape), t.dtype) for name, t in zip(self.spec.outputs, shapes, strict=True)
        ]

    def run(self, threads: int = 1) -> None:
        """Plans, allocates and launches."""
        size = self.kernel.plan(*self.args)
        self.allocate()
        workspace = self._guarded("the workspace", (size,), torch.uint8) if size else None
        try:
            self.kernel.launch(*self.args, *self.outputs, workspace, self.target.stream(), threads)
        except UnsupportedOp as error:
            raise Lied(f"{self.spec.name}: the plan accepts a call that the launch refuses: {error}") from error
        if self.target.device != "cpu":
            torch.cuda.synchronize()

    def _guarded(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        memory = torch.full((size + 2 * GUARD,), GUARD_BYTE, dtype=torch.uint8, device=self.target.device)
        inside = memory[GUARD : GUARD + size].view(dtype).view(shape)
        self.fill(inside)
        self.guards.append((name, memory[:GUARD], memory[GUARD + size :]))
        return inside

    def check_memory(self) -> None:
        """Raises Mismatch if the call wrote what is not its to write."""
        for name, *sides in self.guards:
            if any(bool((side != GUARD_BYTE).any()) for side in sides):
                raise Mismatch(f"memory beside {name} was written")
        for name, before, after in zip(self.spec.arguments, self.given, self.args, strict=True):
            if isinstance(before, Tensor) and name not in self.spec.mutates and not _equal_bytes(before, after):
                raise Mismatch(f"the input {name} was written")

    def untouched(self) -> bool:
        """Whether every output, and every input, still holds what it held before the call."""
        expected = [self.fill(torch.empty_like(t)) for t in self.outputs]
        pairs = [*zip(self.outputs, expected, strict=True), *zip(self.args, self.given, strict=True)]
        return all(_equal_bytes(a, b) for a, b in pairs if isinstance(a, Tensor))

    def results(self) -> Named:
        """Outputs, and inputs that the operator writes, by name."""
        named = dict(zip(self.spec.outputs, self.outputs, strict=True))
        a = self.spec.bind(self.args)
        return named | {name: a[name] for name in self.spec.mutates}


def _equal_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def open_target(name: str) -> Target:
    """Selects a backend strictly and loads its kernels.

    Raises:
        BackendUnavailable: It is not installed, or finds no device.
    """
    selection.use_backend(name)
    found = selection.installed_backends()[name].backend
    assert found is not None
    kernels, refused = selection.load(found)
    return Target(found, kernels, refused, frozenset(found.load()))
