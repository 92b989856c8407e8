"""A run as evidence: the files that it leaves, what can be read from them, and what may be claimed by them.

``describe`` says what was run on what, ``write`` leaves the files and the bundle, ``read`` takes any of them back.
``difference``, ``claim`` and ``matrix`` work on reports, wherever they come from.
"""

from .about import describe
from .bundle import TARBALL, verify
from .files import write
from .reading import ReportError, read

__all__ = ["TARBALL", "ReportError", "describe", "read", "verify", "write"]
