"""What an operator must pass to count: a list for each version of the operator set, frozen once it is released.

``python -m spikingbrain_hal.conformance.verdict.mustpass`` writes the list of the version in :data:`OPERATOR_SET` from
the declarations, unless there is one; with ``--check`` it says whether the declarations still agree with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
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
        """Reads the list of a version."""
        text = files(__package__).joinpath(FOLDER, f"{version}.json").read_text(encoding="utf-8")
        return MustPass({op: (entry["version"], entry["checks"]) for op, entry in json.loads(text).items()})

    @staticmethod
    def declared() -> MustPass:
        """The list that the declarations give: what the quick profile compares with the oracle."""
        from ...declare.registry import OPERATORS
        from ..checks import CHECKS
        from ..run.case import plan
        from .levels import FORWARD

        cases: dict[str, dict[str, dict[str, list[str]]]] = {op: {} for op in OPERATORS}
        for item in plan("quick"):
            if CHECKS[item.check].level == FORWARD:
                check = f"{item.check}[{item.part}]" if item.part else item.check
                cases[item.op].setdefault(check, {}).setdefault(item.case_id, []).append(item.dtype)
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


def _by_dtypes(found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case, dtypes in found.items():
        groups.setdefault(" ".join(dtypes), []).append(case)
    return groups


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the list of this version of the operator set; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m spikingbrain_hal.conformance.verdict.mustpass", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail when there is no list")
    check = parser.parse_args(arguments).check
    path = Path(__file__).parent / FOLDER / f"{OPERATOR_SET}.json"
    declared = MustPass.declared()
    if not path.exists() and not check:
        path.parent.mkdir(exist_ok=True)
        path.write_text(declared.text(), encoding="utf-8")
        print(f"{FOLDER}/{path.name} written")
        return 0
    changed = MustPass.load(OPERATOR_SET).differences(declared) if path.exists() else ["there is no list"]
    if changed:
        print(
            f"the list of operator set {OPERATOR_SET} is frozen and the declared cases are others: raise OPERATOR_SET "
            f"in spikingbrain_hal/conformance/verdict/mustpass.py to {OPERATOR_SET + 1} and run this command without "
            f"--check (before a release: delete {FOLDER}/{path.name} and run it). What changed:"
        )
        print(*changed, sep="\n")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
