"""Without the libraries their shims import, and say what to install once they are used."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from spikingbrain_hal.compat import snntorch, spikingjelly


def test_spikingjelly_is_asked_for_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    for name in [name for name in sys.modules if name.startswith("spikingjelly.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="needs spikingjelly: pip install spikingjelly"):
        spikingjelly.accelerate()
    with pytest.raises(ModuleNotFoundError, match="needs spikingjelly"), spikingjelly.accelerated():
        pass
    with pytest.raises(ModuleNotFoundError, match="needs spikingjelly"):
        spikingjelly.explain(nn.Linear(2, 2))


def test_snntorch_is_asked_for_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(ModuleNotFoundError, match="needs snntorch: pip install snntorch"):
        snntorch.run(nn.Linear(2, 2), torch.ones(3, 2))
    with pytest.raises(ModuleNotFoundError, match="needs snntorch"):
        snntorch.explain(nn.Linear(2, 2))
