"""The seed of all that tests draw: the same on each run, so that a red one has to do with the change.

SBHAL_SEED sets another, as ``make nightly`` does; the conformance runs that tests start have it too.
"""

from __future__ import annotations

import os

SEED = int(os.environ.setdefault("SBHAL_SEED", "1"))
