"""How long a selection holds: for the process, or for a ``with`` block. docs/decisions/0011-selection-scope.md."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .selection import Active


@dataclass(eq=False)
class Scope:
    """What was selected while something lasts, the process or a block: the last selection counts.

    Attributes:
        made: Each selection, and a reference to its maker, which takes it along should it enter a block of its own.
    """

    made: list[tuple[Active, weakref.ref[object]]] = field(default_factory=list)

    @property
    def active(self) -> Active | None:
        """What counts here."""
        return self.made[-1][0] if self.made else None

    def add(self, active: Active, maker: object) -> None:
        """Selects from now on."""
        if self.made and self.made[-1][1]() is None:
            del self.made[:-1]  # nobody can take the last one away, so those before it are never seen again
        self.made.append((active, weakref.ref(maker)))

    def drop(self, maker: object) -> None:
        """Takes back what a maker has selected."""
        self.made[:] = [(active, ref) for active, ref in self.made if ref() is not maker]


_entered: ContextVar[tuple[Scope, ...]] = ContextVar("spikingbrain_hal blocks", default=())  # by this thread or task


class Scopes:
    """The scopes of one device type. Guarded by its user's lock.

    Attributes:
        process: Lasts for ever.
        blocks: The open blocks of all threads and tasks, in the order they were entered.
    """

    def __init__(self) -> None:
        self.process = Scope()
        self.blocks: list[Scope] = []

    def own(self) -> Scope | None:
        """The innermost open block of this thread or task."""
        return next((s for s in reversed(_entered.get()) if s in self.blocks), None)

    def enter(self, active: Active, maker: object) -> Scope:
        """Opens a block on this thread or task."""
        block = Scope()
        block.add(active, maker)
        self.blocks.append(block)
        _entered.set((*_entered.get(), block))
        return block

    def leave(self, block: Scope) -> None:
        """Closes a block, whichever others have been opened or closed since, and wherever this is called."""
        self.blocks.remove(block)
        _entered.set(tuple(s for s in _entered.get() if s is not block))

    def here(self) -> Active | None:
        """What is selected for this thread or task: by its own block, else the last open one, else the process."""
        return (self.own() or (self.blocks[-1] if self.blocks else self.process)).active

    def everywhere(self) -> Active | None:
        """What is selected for all threads alike; None where blocks may differ."""
        return self.here() if not self.blocks else self.blocks[0].active if len(self.blocks) == 1 else None
