"""What a run consists of: every check on every operator, case and dtype that it applies to."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..registry import OPERATORS
from ..spec import Case, OpSpec
from ..testing import io_dtypes
from .checks import CHECKS, Check

PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Item:
    """One conformance case: a check on an operator at one of its cases and a dtype.

    Attributes:
        op: The operator's name.
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
    def id(self) -> str:
        """Unique in a run, stable between runs."""
        check = f"{self.check}[{self.part}]" if self.part else self.check
        return f"{self.op}/{check}/{self.dtype}/{self.spec.cases[self.case].id}"


def _items_of(spec: OpSpec, check: Check, profile: str) -> Iterator[Item]:
    dtypes = io_dtypes(spec) if check.every_dtype else io_dtypes(spec)[:1]
    fitting = [i for i, case in enumerate(spec.cases) if _fits(check, spec, case)]
    for i in fitting[: check.limit[profile]]:
        for dtype in dtypes:
            for part in check.parts(spec, spec.cases[i]):
                yield Item(spec.name, i, str(dtype).removeprefix("torch."), check.name, part)


def _fits(check: Check, spec: OpSpec, case: Case) -> bool:
    return check.applies(spec, case) and bool(check.parts(spec, case))


def plan(profile: str, ops: Sequence[str] = (), pattern: str = "") -> list[Item]:
    """Every item of a run, operators in the order of their declaration.

    Args:
        profile: ``"quick"`` or ``"full"``.
        ops: Only these operators, each with its backward; all if empty.
        pattern: Only items whose id contains this, as text or as a shell pattern, of all in the full profile.

    Raises:
        ValueError: An operator is unknown, or nothing is left.
    """
    unknown = [op for op in ops if op not in OPERATORS]
    if unknown:
        raise ValueError(f"there is no operator {unknown[0]!r}; declared are {', '.join(OPERATORS)}")
    wanted = {*ops, *(f"{op}_backward" for op in ops)} or OPERATORS.keys()
    items = [
        item
        for spec in OPERATORS.values()
        if spec.name in wanted
        for check in CHECKS.values()
        for item in _items_of(spec, check, "full" if pattern else profile)
        if not pattern or pattern in item.id or fnmatch.fnmatchcase(item.id, f"*{pattern}*")
    ]
    if not items:
        raise ValueError(f"no case matches {pattern or ', '.join(ops)!r}: nothing would be run")
    return items


def torch_dtype(name: str) -> torch.dtype:
    """The dtype called ``name``."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
