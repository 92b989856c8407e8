"""What users of stand-ins are warned of."""

from __future__ import annotations

import warnings

# By the version of fla whose conventions a release follows: the release, and the transformers that it was written for.
WRITTEN_FOR = {
    "0.1": ("SpikingBrain 1.0", "4.55", "4.55.2"),
    "0.4": ("SpikingBrain 2.0", "4.57", "4.57.1, and 4.57.3 for its vision-language model"),
}


class CompatWarning(UserWarning):
    """Client code meets another library than it was written for: a real one, a stand-in, or another version."""


def warn_of_transformers(profile: str, stacklevel: int) -> None:
    """Warns if the transformers that is loaded is none that the code of a profile's release was written for."""
    import transformers

    if profile not in WRITTEN_FOR:
        return
    release, series, versions = WRITTEN_FOR[profile]
    if not f"{transformers.__version__}.".startswith(f"{series}."):
        warnings.warn(
            f"spikingbrain_hal.compat: transformers is {transformers.__version__}; code of {release}, which "
            f"fla={profile!r} is for, was written for transformers {versions}",
            CompatWarning,
            stacklevel=stacklevel + 1,
        )
