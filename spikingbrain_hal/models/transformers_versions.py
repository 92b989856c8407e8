"""Which versions of transformers the models were tested with, and what differs among them."""

from __future__ import annotations

import re
import warnings
from dataclasses import fields

import transformers
from transformers.modeling_outputs import BaseModelOutputWithPast

OLDEST, NEWEST = "4.55", "5.24"

CACHE = "cache" if any(f.name == "cache" for f in fields(BaseModelOutputWithPast)) else "past_key_values"
"""The name that this transformers gives the cache in outputs and hands it over by; both are accepted."""


def warn_if_untested(version: str = transformers.__version__) -> None:
    """Warns of a transformers outside the range that the models were tested with.

    Args:
        version: Of transformers, as in ``"5.24.0"``.
    """
    here, oldest, newest = (tuple(map(int, re.findall(r"\d+", v)[:2])) for v in (version, OLDEST, NEWEST))
    if not oldest <= here <= newest:
        warnings.warn(
            f"spikingbrain_hal.models was tested with transformers {OLDEST} to {NEWEST}, this is {version}: compare "
            'what generate writes with and without its cache, or install "spikingbrain-hal[models]"',
            stacklevel=2,
        )
