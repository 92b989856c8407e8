"""What tests share: seeded randomness, their order, and environments to install into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from checkout import Environment, make_environment
from seeds import SEED
from spikingbrain_hal.calls import selection

hypothesis.core.global_force_seed = SEED  # what --hypothesis-seed sets
# No memory of what failed before; and hypothesis draws nothing by itself where CI is set, unless told to.
hypothesis.settings.register_profile("ours", database=None, derandomize=False)
hypothesis.settings.load_profile("ours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two workers then end together."""
    builds = {item.path for item in items if item.get_closest_marker("slow")}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in builds, -sizes[item.path], str(item.path)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.keys() & {"failed", "error"}:
        terminalreporter.write_line(f"the same again: SBHAL_SEED={SEED}")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return make_environment(tmp_path / "environment")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """References run many small operations, which more threads only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_selection() -> Iterator[None]:
    """No backend is selected or chosen yet, and what the test selects is forgotten."""
    kept: list[dict[str, Any]] = [selection.ACTIVE, selection._chosen, selection._scopes]
    before = [dict(k) for k in kept]
    for k in kept:
        k.clear()
    yield
    for k, b in zip(kept, before, strict=True):
        k.clear()
        k.update(b)


@pytest.fixture
def contents_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the conformance command does for backends that look at no values themselves."""
    monkeypatch.setenv("SBHAL_CHECK", "1")
