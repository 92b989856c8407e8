"""What tests share: seeded randomness and environments to install into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkout import Environment, make_environment


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
def contents_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the conformance command does for backends that look at no values themselves."""
    monkeypatch.setenv("SBHAL_CHECK", "1")
