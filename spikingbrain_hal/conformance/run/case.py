"""What a run consists of: every check of the backend, and on every operator, case and dtype that it applies to."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...declare.inputs import io_dtypes
from ...declare.registry import OPERATORS
from ...declare.spec import Case, OpSpec
from ..checks import BACKEND_CHECKS, CHECKS, Check
from ..operators import properties_of
from ..verdict.levels import GRADIENTS, LEVELS
from ..verdict.record import BACKEND
from .target import Opened

PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Item:
    """One conformance case: a check on an operator at one of its cases and a dtype, or a check of the whole backend.

    Attributes:
        op: The operator's name; ``BACKEND`` for the whole backend, which has neither cases nor dtypes.
        case: The place of its case among the operator's.
        dtype: ``"float32"``, ...
        check: The check's name.
        part: Which part of the check, if it has several.
    """

    op: str
    case: int
    dtype: str
    check: str
    part: str = ""

    @property
    def spec(self) -> OpSpec:
        """The operator."""
        return OPERATORS[self.op]

    @property
    def case_id(self) -> str:
        """The id of its case, empty for the whole backend."""
        return "" if self.op == BACKEND else self.spec.cases[self.case].id

    @property
    def id(self) -> str:
        """Unique in a run, stable between runs."""
        check = f"{self.check}[{self.part}]" if self.part else self.check
        return "/".join(filter(None, (self.op, check, self.dtype, self.case_id)))

    @property
    def level(self) -> int:
        """Of its check; whatever is tested of a backward operator is at least of the level of gradients."""
        return BACKEND_CHECKS[self.check].level if self.op == BACKEND else _level(self.spec, CHECKS[self.check])


def _level(spec: OpSpec, check: Check) -> int:
    return max(check.level, GRADIENTS if spec.forward else 0)


def items_of(spec: OpSpec, check: Check, profile: str) -> Iterator[Item]:
    """The items of one check of one operator."""
    dtypes = io_dtypes(spec) if check.every_dtype else io_dtypes(spec)[:1]
    fitting = [i for i, case in enumerate(spec.cases) if _fits(check, spec, case)]
    for i in fitting[: check.limit[profile]]:
        for dtype in dtypes:
            for part in check.parts(spec, spec.cases[i]):
                yield Item(spec.name, i, str(dtype).removeprefix("torch."), check.name, part)


def _fits(check: Check, spec: OpSpec, case: Case) -> bool:
    return check.applies(spec, case) and bool(check.parts(spec, case))


def not_planned(opened: Opened) -> dict[str, str]:
    """The checks of the whole backend that this one cannot show, each with the reason."""
    reasons = {name: check.absent(opened) for name, check in BACKEND_CHECKS.items()}
    return {name: reason for name, reason in reasons.items() if reason}


@dataclass(frozen=True)
class Selection:
    """Which cases there are to be.

    Attributes:
        profile: ``"quick"`` or ``"full"``.
        ops: Only these operators, each with its backward, or ``BACKEND``; all if empty.
        pattern: Only cases whose id contains this, as text or as a shell pattern, of all in the full profile.
        level: Only levels up to this.

    Raises:
        ValueError: The profile, the level or an operator is unknown.
    """

    profile: str
    ops: Sequence[str] = ()
    pattern: str = ""
    level: int = max(LEVELS)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"there is no profile {self.profile!r}; there are {', '.join(PROFILES)}")
        if self.level not in LEVELS:
            raise ValueError(f"there is no level {self.level}; there are {min(LEVELS)} to {max(LEVELS)}")
        unknown = [op for op in self.ops if op not in OPERATORS and op != BACKEND]
        if unknown:
            raise ValueError(f"there is no operator {unknown[0]!r}; declared are {', '.join(OPERATORS)}")

    def of_operators(self) -> list[Item]:
        """The items of operators, in the order of their declaration.

        Raises:
            ValueError: The suite knows nothing of one.
        """
        wanted = {*self.ops, *(f"{op}_backward" for op in self.ops)} or OPERATORS.keys()
        profile = "full" if self.pattern else self.profile
        specs = [spec for spec in OPERATORS.values() if spec.name in wanted]
        for spec in specs:
            properties_of(spec)  # of which the suite knows nothing is refused, not tested less
        checks = [(spec, check) for spec in specs for check in CHECKS.values()]
        return [
            item
            for spec, check in checks
            if _level(spec, check) <= self.level
            for item in items_of(spec, check, profile)
            if self._matches(item)
        ]

    def of_backend(self, opened: Opened) -> list[Item]:
        """The items of the whole backend, by level."""
        if self.ops and BACKEND not in self.ops:
            return []
        checks = [c for c in BACKEND_CHECKS.values() if c.level <= self.level and not c.absent(opened)]
        checks.sort(key=lambda check: check.level)
        items = [Item(BACKEND, 0, "", check.name, part) for check in checks for part in check.parts(opened)]
        return [item for item in items if self._matches(item)]

    def expect_some(self, items: Sequence[Item]) -> None:
        """Raises ValueError if nothing is left."""
        if not items:
            asked = self.pattern or ", ".join(self.ops) or f"level {self.level}"
            raise ValueError(f"no case matches {asked!r}: nothing would be run")

    def _matches(self, item: Item) -> bool:
        return not self.pattern or self.pattern in item.id or fnmatch.fnmatchcase(item.id, f"*{self.pattern}*")


def plan(
    profile: str, ops: Sequence[str] = (), pattern: str = "", level: int = max(LEVELS), opened: Opened | None = None
) -> list[Item]:
    """Every item of a run, those of the whole backend first; without ``opened`` those are left out.

    Args:
        profile, ops, pattern, level: As of a :class:`Selection`.
        opened: The backend.

    Raises:
        ValueError: The profile, the level or an operator is unknown, to the suite too, or nothing is left.
    """
    selection = Selection(profile, ops, pattern, level)
    items = (selection.of_backend(opened) if opened else []) + selection.of_operators()
    selection.expect_some(items)
    return items


def torch_dtype(name: str) -> torch.dtype:
    """The dtype called ``name``."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
