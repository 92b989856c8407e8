"""The modules of flash-attn 2 that SpikingBrain's released code and transformers import."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import unpadding
from ..signatures import absent
from . import attention
from .kvcache import flash_attn_with_kvcache
from .rotary import NAMES as ROTARY
from .rotary import apply_rotary_kernel

VERSION = "2.8.3"

_FUNCTIONS: dict[str, object] = {
    **{name: getattr(attention, name) for name in dir(attention) if name.startswith("flash_attn_")},
    "flash_attn_with_kvcache": flash_attn_with_kvcache,
}
_PRIVATE: dict[str, object] = {
    "_flash_attn_varlen_forward": attention._flash_attn_varlen_forward,
    "_flash_attn_varlen_backward": absent(
        "flash_attn.flash_attn_interface._flash_attn_varlen_backward",
        "a gradient from a foreign LSE has no operator; differentiate flash_attn_varlen_func instead",
    ),
}


def modules(version: str) -> dict[str, Callable[[], Mapping[str, object]]]:
    """What each module holds, by its full name.

    Args:
        version: As ``flash_attn.__version__`` gives it; below 2.7 ``unpad_input`` returns four values, not five.
    """
    old = tuple(int(part) for part in version.split(".")[:2]) < (2, 7)
    padding = {name: getattr(unpadding, name) for name in ("pad_input", "index_first_axis", "index_put_first_axis")}
    padding["unpad_input"] = unpadding.unpad_flash_26 if old else unpadding.unpad_flash
    return {
        "flash_attn": lambda: {"__version__": version, **_FUNCTIONS},
        "flash_attn.flash_attn_interface": lambda: {**_FUNCTIONS, **_PRIVATE},
        "flash_attn.bert_padding": lambda: padding,
        "flash_attn.layers.rotary": lambda: ROTARY,
        "flash_attn.ops.triton.rotary": lambda: {"apply_rotary": apply_rotary_kernel},
    }
