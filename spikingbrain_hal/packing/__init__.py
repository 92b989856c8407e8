"""The packed format of W8ASpike weights, integers with their scales, and the conversion to it.

A packed checkpoint is a folder of safetensors with ``model.safetensors.index.json``. Each packed projection is
``<linear>.codes``, int8 or int16 [out, in], ``<linear>.scales``, float32 [out, in / group_size], and its ``.bias`` as
it was; the weight they stand for is ``codes * scales``, each scale over its group of inputs. ``config.json`` is the
source's with the key ``packing``: ``format_version``, ``source`` (``"w8aspike"`` or ``"float"``), ``group_size``,
``spike_k`` and ``projections``, the last parts of the packed layers' names. ``packing.json`` records checksums.
"""

from .manifest import FORMAT_VERSION
from .pack import GROUP_SIZE, SHARD_BYTES, pack
from .source import PackingError
from .verify import Difference, verify, verify_checksums

__all__ = [
    "FORMAT_VERSION",
    "GROUP_SIZE",
    "SHARD_BYTES",
    "Difference",
    "PackingError",
    "pack",
    "verify",
    "verify_checksums",
]
