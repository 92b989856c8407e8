"""``python -m spikingbrain_hal`` is ``sbhal``."""

from .cli import main

main()
