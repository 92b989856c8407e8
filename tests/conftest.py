"""What tests share: seeded randomness and environments to install into."""

from __future__ import annotations

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
