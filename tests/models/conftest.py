"""Runs each test of the models over all variants."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module", params=["7b", "76b", "w8aspike"])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from variants import make

    return make(request.param, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny models only wait for each other's threads."""
