"""What an operator must pass to count: a list for each version of the operator set, frozen with a release from 1.0 on.

Until a list is frozen the set is a draft, and its list is what the declarations give. The command
``python -m spikingbrain_hal.conformance.verdict.mustpass`` freezes that of the version in :data:`OPERATOR_SET`; with
``--check`` it says whether the declarations still agree with a frozen one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OPERATOR_SET = 1
FOLDER = "operator_sets"


@dataclass(frozen=True)
class MustPass:
    """The list of one version of the operator set.

    Attributes:
        operators: By operator: the version of its declaration, and by check (its part in brackets), then by dtypes
            with a space between, the ids of the cases.
    """

    operators: Mapping[str, tuple[int, Mapping[str, Mapping[str, Sequence[str]]]]]

    @staticmethod
    def load(version: int) -> MustPass:
        """The list of a version: the frozen one, or of a draft what the declarations give."""
        if not is_frozen(version):
            return MustPass.declared()
        listed = json.loads(_file(version).read_text(encoding="utf-8"))
        return MustPass({op: (entry["version"], entry["checks"]) for op, entry in listed.items()})

    @staticmethod
    def declared() -> MustPass:
        """The list that the declarations give: what the quick profile compares with the oracle."""
        from ...declare.registry import OPERATORS
        from ..checks import CHECKS
        from ..run.case import items_of
        from .levels import FORWARD

        cases: dict[str, dict[str, dict[str, list[str]]]] = {op: {} for op in OPERATORS}
        compared = [check for check in CHECKS.values() if check.level == FORWARD]
        for item in (i for spec in OPERATORS.values() for check in compared for i in items_of(spec, check, "quick")):
            name = f"{item.check}[{item.part}]" if item.part else item.check
            cases[item.op].setdefault(name, {}).setdefault(item.case_id, []).append(item.dtype)
        return MustPass(
            {
                op: (OPERATORS[op].version, {c: _by_dtypes(found) for c, found in checks.items()})
                for op, checks in cases.items()
            }
        )

    def ids(self, op: str) -> list[str]:
        """The ids of an operator's cases."""
        checks = self.operators[op][1]
        return [
            f"{op}/{check}/{dtype}/{case}"
            for check, groups in checks.items()
            for dtypes, cases in groups.items()
            for case in cases
            for dtype in dtypes.split()
        ]

    def text(self) -> str:
        """As the file holds it."""
        plain = {op: {"version": version, "checks": checks} for op, (version, checks) in self.operators.items()}
        return json.dumps(plain, indent=1) + "\n"

    def differences(self, other: MustPass) -> list[str]:
        """What another list lacks or has beside, a line each."""
        found = []
        for op in dict.fromkeys([*self.operators, *other.operators]):
            if op not in other.operators or op not in self.operators:
                found.append(f"the operator {op} is {'gone' if op in self.operators else 'new'}")
                continue
            if self.operators[op][0] != other.operators[op][0]:
                found.append(f"{op} has version {other.operators[op][0]}, the list {self.operators[op][0]}")
            before, after = self.ids(op), other.ids(op)
            found += [f"gone: {i}" for i in before if i not in set(after)]
            found += [f"new: {i}" for i in after if i not in set(before)]
        return found


def _file(version: int) -> Path:
    return Path(__file__).parent / FOLDER / f"{version}.json"


def is_frozen(version: int) -> bool:
    """Whether the list of a version is written down, for good."""
    return _file(version).is_file()


def _by_dtypes(found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case, dtypes in found.items():
        groups.setdefault(" ".join(dtypes), []).append(case)
    return groups


def main(arguments: list[str] | None = None) -> int:
    """Freezes or checks the list of this version of the operator set; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m spikingbrain_hal.conformance.verdict.mustpass", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a frozen list does not agree")
    check = parser.parse_args(arguments).check
    path = _file(OPERATOR_SET)
    declared = MustPass.declared()
    if not is_frozen(OPERATOR_SET):
        if check:
            print(f"operator set {OPERATOR_SET} is a draft: its list is what is declared")
            return 0
        path.parent.mkdir(exist_ok=True)
        path.write_text(declared.text(), encoding="utf-8")
        print(f"{FOLDER}/{path.name} written: operator set {OPERATOR_SET} is frozen with it")
        return 0
    changed = MustPass.load(OPERATOR_SET).differences(declared)
    if changed:
        print(
            f"operator set {OPERATOR_SET} is frozen and the declared cases are others: raise OPERATOR_SET in "
            f"spikingbrain_hal/conformance/verdict/mustpass.py to {OPERATOR_SET + 1}, a draft. What changed:"
        )
        print(*changed, sep="\n")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
