"""Forks of a process that may have had threads at work: OpenMP's are gone in the child, and waiting for one never ends.

A native module notices the forks that come after it was loaded. Those before, while only the package was imported, are
noted here, in every process and its children's children, and told to the module when it is bound.
"""

import os

_forked = False


def _note() -> None:
    global _forked
    _forked = True


def watch() -> None:
    """Notes every fork from here on. Called once, when the package is imported."""
    os.register_at_fork(after_in_child=_note)


def forked() -> bool:
    """Whether this process, or one it descends from, was forked after the package had been imported."""
    return _forked
