"""A backend that misbehaves on purpose, for the runner: importing it registers it, as ``--import`` does."""

from __future__ import annotations

import os
import time
from typing import Any

from spikingbrain_hal import register_backend
from spikingbrain_hal.registry import OPERATORS
from spikingbrain_hal.testing import python_backend

NAME = "hostile"


def crashes(*args: Any) -> Any:
    if args[0].dim() == 1:  # one case of several
        os.abort()
    return OPERATORS["spike_encode"].reference(*args)


def hangs(*args: Any) -> Any:
    if args[0].dim() == 1:
        time.sleep(3600)
    return OPERATORS["spike_quantize"].reference(*args)


register_backend(python_backend(NAME, {"spike_encode": crashes, "spike_quantize": hangs}))
