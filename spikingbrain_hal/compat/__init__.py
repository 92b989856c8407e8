"""Released SpikingBrain code, unmodified, without the libraries that it imports.

``fla``, ``flash_attn``, ``Int2Spike`` and ``triton`` become importable while an installation is active. What they offer
runs on :mod:`spikingbrain_hal.ops`, on any device; every other convention (axes, windows, argument orders, states) is
translated here and nowhere else.

    with compat.installed(fla="0.1"):           # SpikingBrain 1.0; "0.4" for 2.0
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)

    python -m spikingbrain_hal.compat --fla 0.1 script.py arguments...
"""

from .installation import Installation, install, installed, uninstall
from .layout import LayoutError, LayoutWarning
from .notices import CompatWarning

__all__ = ["CompatWarning", "Installation", "LayoutError", "LayoutWarning", "install", "installed", "uninstall"]
