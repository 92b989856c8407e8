"""spike_encode on the CPU and on a simulated device, beyond what the suite asks of every operator."""

from __future__ import annotations

import pytest
import torch

from spikingbrain_hal import installed_backends, ops, use_backend


@pytest.mark.parametrize(("backend", "width"), [("cpu", 18944), ("cpu", 1 << 24), ("sim", 18944), ("sim", 1 << 18)])
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_the_mean_of_equal_numbers_is_one_of_them(backend: str, width: int, value: float) -> None:
    """Added one after the other, equal terms round the same way each time: 2.5e-3 at 2^24."""
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    x = torch.full((1, width), value)
    with use_backend(backend):
        _, threshold = ops.spike_encode(x, k=1.0)
    error = abs(threshold.double().item() / x[0, 0].double().item() - 1)
    assert error < 2.0**-21, f"{error:.2g}"
