"""What a run needs to know beside its cases."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field

CASE_TIMEOUT = 120.0
SHARE_OF_MEMORY = 0.75


@dataclass(frozen=True)
class Settings:
    """Where and how cases are run.

    Attributes:
        backend: The backend's name.
        seed: Of all inputs.
        jobs: How many worker processes run at once.
        threads: Threads of each.
        modules: Imported by each worker first, for backends that register themselves.
        timeout: Seconds that one case may take.
        memory: MiB by which a worker process may grow; most of what is free now if absent.
    """

    backend: str
    seed: int = 0
    jobs: int = 1
    threads: int = 1
    modules: tuple[str, ...] = ()
    timeout: float = CASE_TIMEOUT
    memory: int = field(default_factory=lambda: default_memory())

    def reproduce(self, item_id: str) -> str:
        """The command that runs one case alone."""
        said = ("SBHAL_CHECK", "SBHAL_SEED")  # by the command itself
        settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SBHAL_") and k not in said}
        before = "".join(f"{name}={shlex.quote(value)} " for name, value in settings.items())
        extra = "".join(f" --import {m}" for m in self.modules)
        case = shlex.quote(item_id)
        return f"{before}sbhal conformance --backend {self.backend}{extra} --case {case} --seed {self.seed} --no-bench"


def default_jobs() -> int:
    """As many workers as fit the processor and a person's patience with its noise."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


def default_memory() -> int:
    """Three quarters of the memory that is free, in MiB: more than any case needs, less than harms the machine."""
    with open("/proc/meminfo", encoding="ascii") as file:
        known = dict(line.split(":", 1) for line in file)
    return int(SHARE_OF_MEMORY * int(known["MemAvailable"].split()[0])) // 1024
