"""The backend under test, called in two ways: as a model calls it, and directly with hostile memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from ...backend.backend import Backend, Kernel
from ...calls import selection
from ...calls.autograd import call
from ...declare.inputs import poison
from ...declare.registry import OPERATORS
from ...declare.spec import OpSpec
from ...errors import BackendUnavailable, StrideError, UnsupportedOp
from ..verdict.judge import Mismatch
from ..verdict.truth import Named, each, named_results

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


def call_public(spec: OpSpec, args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Runs an operator as a public function does, with autograd."""
    results = call(spec, *args)
    return results if isinstance(results, tuple) else (results,)


class Lied(AssertionError):
    """One way of calling a kernel serves what another calls unsupported: its plan, its launch, or both at once."""


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
        with self.honest(spec, args):
            return named_results(spec, spec.raw, args)

    @contextmanager
    def honest(self, spec: OpSpec, args: Sequence[Any]) -> Iterator[None]:
        """Around every call with these arguments: a refusal must be one that the plan gives for them too.

        Raises:
            Lied: The call inside is refused, and its plan accepts it.
        """
        try:
            yield
        except UnsupportedOp as refusal:
            kernel = self.kernels.get(spec.name)
            if kernel is not None and not _refuses(kernel, args):
                raise Lied(f"{spec.name}: the plan accepts a call that the launch refuses: {refusal}") from refusal
            raise

    def differentiable(self, spec: OpSpec, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """Runs an operator as a public function does, with autograd; raises as :meth:`call` does."""
        with self.honest(spec, args):
            return call_public(spec, args)

    def prepare(
        self, spec: OpSpec, args: Sequence[Any], threads: int = 1
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """A launch as a caller makes it, on the stream that is current when it runs, and the outputs it writes.

        Args:
            spec: The operator.
            args: Its arguments, contiguous.
            threads: How many the kernel may use.
        """
        kernel, outputs = self.kernels[spec.name], spec.allocate(*args)
        size = kernel.plan(*args)
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device) if size else None
        return lambda: kernel.launch(*args, *outputs, workspace, self.stream(), threads), outputs

    def launch(
        self,
        spec: OpSpec,
        args: Sequence[Any],
        threads: int = 1,
        fill: Callable[[Tensor], Any] = poison,
        at_once: bool = False,
    ) -> Named:
        """Plans and launches directly, outputs and workspace filled with ``fill`` and guarded on both sides.

        Args:
            spec: The operator.
            args: Its arguments.
            threads: How many the kernel may use.
            fill: What outputs and workspace hold before.
            at_once: By the kernel's ``run`` instead, which takes its workspace itself.

        Raises:
            Mismatch: Memory outside an output or the workspace was written, or an input was.
        """
        call = Launch(self, spec, args, fill)
        call.run(threads, at_once)
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
        self.given = each(args, Tensor.contiguous)
        self.args = each(self.given, Tensor.clone)
        self.guards: list[tuple[str, Tensor, Tensor]] = []

    def allocate(self, like: Sequence[Any] | None = None) -> None:
        """Makes the outputs of this call, or of one with the arguments ``like``."""
        shapes = self.spec.allocate(*(self.args if like is None else like))
        self.outputs = [
            self._guarded(name, tuple(t.shape), t.dtype) for name, t in zip(self.spec.outputs, shapes, strict=True)
        ]

    def run(self, threads: int = 1, at_once: bool = False) -> None:
        """Plans, allocates and launches.

        Raises:
            UnsupportedOp: The kernel does not serve the call.
            Lied: It says so in one way of calling it and not in the other.
        """
        try:
            size = self.kernel.plan(*self.args)
        except UnsupportedOp as refusal:
            self._expect_refusal(refusal, threads)
            raise
        self.allocate()
        stream = self.target.stream()
        with self.target.honest(self.spec, self.args):
            if at_once:
                assert self.kernel.run is not None
                self.kernel.run(*self.args, *self.outputs, stream, threads)
            else:
                workspace = self._guarded("the workspace", (size,), torch.uint8) if size else None
                self.kernel.launch(*self.args, *self.outputs, workspace, stream, threads)
        if self.target.device != "cpu":
            torch.cuda.synchronize()

    def _expect_refusal(self, refusal: UnsupportedOp, threads: int) -> None:
        """What the plan refuses must not be computed by the entry that dispatch prefers."""
        if self.kernel.run is None:
            return
        self.allocate()
        try:
            self.kernel.run(*self.args, *self.outputs, self.target.stream(), threads)
        except UnsupportedOp:
            return
        raise Lied(f"{self.spec.name}: a call runs that the plan refuses: {refusal}")

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


def _refuses(kernel: Kernel, args: Sequence[Any]) -> bool:
    """Whether a plan refuses a call, also in the contiguous copies that dispatch makes where it asks for them."""
    for given in (args, each(args, Tensor.contiguous)):
        try:
            kernel.plan(*given)
        except UnsupportedOp:
            return True
        except StrideError:
            continue
        return False
    return True


def _equal_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def open_target(name: str) -> Target:
    """Selects a backend strictly and loads its kernels.

    Raises:
        BackendUnavailable: It is not installed, finds no device, or is the reference.
    """
    if name == selection.REFERENCE:
        installed = ", ".join(sorted(selection.installed_backends())) or "none"
        raise BackendUnavailable(f"{name!r} is no backend: kernels are judged by it. Installed: {installed}")
    selection.use_backend(name)
    found = selection.installed_backends()[name].backend
    assert found is not None
    kernels, refused = selection.load(found)
    return Target(found, kernels, refused, frozenset(found.load()))
