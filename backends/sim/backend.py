"""The simulated GPU: every GPU kernel of csrc/ops, run on the CPU by csrc/simt."""

from __future__ import annotations

import os

from spikingbrain_hal.backend import simulated_backend

WAVEFRONTS = ("32", "64")


def _module() -> str:
    """The module built for the wavefront that ``SBHAL_SIM_WAVE`` asks for, 32 if it asks for none."""
    wavefront = os.environ.get("SBHAL_SIM_WAVE") or WAVEFRONTS[0]
    if wavefront not in WAVEFRONTS:
        raise ValueError(f"SBHAL_SIM_WAVE is {wavefront!r}, expected one of {', '.join(WAVEFRONTS)}")
    return f"_native{wavefront}"


backend = simulated_backend(__package__, "sim", "any GPU, simulated", _module)
