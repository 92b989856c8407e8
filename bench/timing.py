"""Side-by-side timing: contenders take turns in one process, so a change in the machine's speed hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Contender = Callable[[], Any]


def take_turns(contenders: Mapping[str, Contender], rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of every run of each contender, after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number:
                seconds[name].append(elapsed)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of how many times longer ``slow`` took than ``fast`` in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def per_call(run: Contender, calls: int = 5000) -> float:
    """Seconds of one call, averaged over many."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
