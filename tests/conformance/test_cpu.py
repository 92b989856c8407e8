"""The quick profile of the conformance suite as tests, in this process, on the backend of SBHAL_TEST_BACKEND."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from spikingbrain_hal import use_backend
from spikingbrain_hal.conformance.run.case import Item, plan
from spikingbrain_hal.conformance.run.target import open_target
from spikingbrain_hal.conformance.run.worker import Session
from spikingbrain_hal.conformance.verdict.record import Status

BACKEND = os.environ.get("SBHAL_TEST_BACKEND", "cpu")


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with use_backend(BACKEND):
        yield Session(open_target(BACKEND), seed=0)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("item", plan("quick"), ids=lambda item: item.id)
def test_case(item: Item, session: Session) -> None:
    record = session.run(item)
    assert record.status == Status.PASS, record.message
