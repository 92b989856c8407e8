"""Linear-attention functions of fla, on :func:`spikingbrain_hal.ops.gated_linear_attention`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...ops.linear_attention.gated_linear_attention import gated_linear_attention
from ..layout import LayoutWitness
from ..signatures import Arguments, absent, adapted, refuse

_STATE = "scale=None, initial_state=None, output_final_state=False"
_GLA = f"q, k, v, g, {_STATE}"
_RECURRENT = "q, k, v, gk=None, gv=None, scale=None, initial_state=None, output_final_state=False, reverse=False"
_FUSED_CHUNK = "q, k, v, g, scale=-1, initial_state=None, output_final_state=False"
_V_FIRST = "state_v_first=False, cu_seqlens=None"
_LINEAR = f"q, k, v, {_STATE}"

# What each version takes, in its order: positions moved over the years.
ORDERS: dict[str, dict[str, str]] = {
    "chunk_gla": {
        "0.1": f"{_GLA}, cu_seqlens=None, head_first=True",
        "0.4": f"{_GLA}, cu_seqlens=None",
        "current": f"{_GLA}, {_V_FIRST}, cu_seqlens_cpu=None, *, transpose_state_layout=None",
    },
    "fused_recurrent_gla": {
        "0.1": f"{_RECURRENT}, cu_seqlens=None, head_first=True",
        "0.4": f"{_RECURRENT}, cu_seqlens=None",
        "current": f"{_RECURRENT}, {_V_FIRST}, *, transpose_state_layout=None, head_first=False",
    },
    "fused_chunk_gla": {
        "0.1": f"{_FUSED_CHUNK}, head_first=True",
        "0.4": f"{_FUSED_CHUNK}, head_first=False",
        "current": f"{_FUSED_CHUNK}, head_first=False",
    },
    "chunk_linear_attn": {
        "0.1": f"{_LINEAR}, normalize=True, head_first=True",
        "0.4": f"{_LINEAR}, normalize=True, head_first=False",
        "current": f"{_LINEAR}, normalize=True, cu_seqlens=None",
    },
    "fused_chunk_linear_attn": {
        "0.1": f"{_LINEAR}, normalize=True, head_first=True",
        "0.4": f"{_LINEAR}, normalize=True, cu_seqlens=None",
        "current": f"{_LINEAR}, normalize=True, cu_seqlens=None",
    },
    "fused_recurrent_linear_attn": {
        "0.1": f"{_LINEAR}, normalize=False, head_first=True",
        "0.4": f"{_LINEAR}, reverse=False, normalize=False, cu_seqlens=None",
        "current": f"{_LINEAR}, reverse=False, normalize=False, cu_seqlens=None",
    },
}

_NOT_YET = "spikingbrain_hal has no such operator yet; the name is here so that files which only import it load"
ABSENT = {
    "fla.ops.gated_delta_rule": ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"),
    "fla.ops.sse": ("softmax_and_mask", "prepare_sample_relpos_global_index_flat"),
    "fla.ops.moba": ("parallel_moba",),
    "moba": ("moba_attn_varlen", "moba_attn_varlen_naive"),
}


class LinearAttention:
    """The functions of one version of fla.

    Args:
        profile: ``"0.1"``, ``"0.4"`` or ``"current"``.
        strict: Refuse calls that look like the other layout.
    """

    def __init__(self, profile: str, strict: bool) -> None:
        self.profile, self.strict = profile, strict
        self.witness = LayoutWitness(profile, strict)

    def functions(self, family: str) -> dict[str, object]:
        """The functions whose names end in ``_<family>``, by name."""
        body = self._gla if family == "gla" else self._linear_attn
        return {name: self._function(name, body) for name in ORDERS if name.endswith(f"_{family}")}

    def absent(self, module: str) -> dict[str, object]:
        """The functions of a module that can only be imported."""
        return {name: absent(f"{module}.{name}", _NOT_YET) for name in ABSENT[module]}

    def _function(self, name: str, body: Callable[[str, Arguments, Arguments], Any]) -> Callable[..., Any]:
        def run(a: Arguments, given: Arguments) -> Any:
            return body(name, a, given)

        aliases = self._gate_alias if name == "fused_recurrent_gla" else None
        doc = f"``{name}`` of fla {self.profile}, computed by spikingbrain_hal.ops.gated_linear_attention."
        return adapted(name, f"fla {self.profile}", ORDERS[name][self.profile], run, aliases, doc)

    def _gate_alias(self, kwargs: Arguments) -> Arguments:
        """The released 7B-VL calls its gate ``g`` here; fla drops that name in silence or refuses it."""
        if "g" not in kwargs or "gk" in kwargs:
            return kwargs
        message = f"fused_recurrent_gla (fla {self.profile}): no argument 'g'; its gate is called 'gk'"
        if self.strict:
            raise TypeError(message)
        warnings.warn(f"{message}. g is read as gk", stacklevel=3)
        return {"gk" if name == "g" else name: value for name, value in kwargs.items()}

    def _gla(self, name: str, a: Arguments, given: Arguments) -> tuple[Tensor, Tensor | None]:
        refuse(name, gv=a.get("gv"))
        a["g"] = a["g"] if "g" in a else a["gk"]
        o, state = self._recur(name, a, given)
        return o, state

    def _linear_attn(self, name: str, a: Arguments, given: Arguments) -> tuple[Tensor, Any]:
        keys_before = None
        if isinstance(a["initial_state"], tuple | list):
            a["initial_state"], keys_before = a["initial_state"]
        a["g"] = None
        o, state = self._recur(name, a, given)
        if not a["normalize"]:
            return o, state
        swap = a.get("head_first", False)
        q, k = (a[n].transpose(1, 2) if swap else a[n] for n in ("q", "k"))
        keys, last = _key_sums(k, keys_before, a.get("cu_seqlens"), a.get("reverse", False))
        scale = k.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
        norm = scale * (q.to(keys.dtype) * keys).sum(-1, keepdim=True) + 1e-10
        o = (o / (norm.transpose(1, 2) if swap else norm)).to(o.dtype)
        # Since 0.5 the state carries the sum of keys too, without which the next call can't normalize.
        return o, (state, last) if self.profile == "current" and a["output_final_state"] else state

    def _recur(self, name: str, a: Arguments, given: Arguments) -> tuple[Tensor, Tensor | None]:
        q, k, v, g = a["q"], a["k"], a["v"], a["g"]
        state, offsets = a["initial_state"], a.get("cu_seqlens")
        head_first = a.get("head_first", False)
        if "head_first" not in given and q.dim() == 4:
            steps, heads = (q.shape[2], k.shape[1]) if head_first else (q.shape[1], k.shape[2])
            self.witness.check(name, q, v, heads, steps, state, offsets is not None)
        if head_first and offsets is not None:
            raise ValueError(f"{name}: cu_seqlens is given with head_first=True, expected head_first=False with it")
        if head_first:
            q, k, v, g = (None if x is None else x.transpose(1, 2) for x in (q, k, v, g))
        if g is None:
            g = k.new_zeros(k.shape[:3], dtype=torch.promote_types(k.dtype, torch.float32))
        v_first = _state_layout(name, a)
        if v_first and state is not None:
            state = state.transpose(-1, -2)
        scale = a["scale"]
        if scale is None or (name == "fused_chunk_gla" and scale == -1):
            scale = q.shape[-1] ** -0.5
        g = g if g.dtype == q.dtype else g.to(torch.promote_types(q.dtype, torch.float32))
        if a.get("reverse"):
            o, last = _reversed(q, k, v, g, scale, state, a["output_final_state"], offsets)
        else:
            o, last = gated_linear_attention(q, k, v, g, scale, state, a["output_final_state"], offsets)
        if last is not None and v_first:
            last = last.transpose(-1, -2).contiguous()
        return (o.transpose(1, 2).contiguous() if head_first else o), last


def _state_layout(name: str, a: Arguments) -> bool:
    """Whether states are [N, H, V, K]."""
    v_first: bool = a.get("state_v_first", False)
    old: bool | None = a.get("transpose_state_layout")
    if old is None:
        return v_first
    if v_first:
        raise ValueError(f"{name}: state_v_first and its old name transpose_state_layout are both given")
    warnings.warn(f"{name}: transpose_state_layout is called state_v_first now", DeprecationWarning, stacklevel=6)
    return old


def _reversed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float,
    state: Tensor | None,
    output_final_state: bool,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence from the last step to the first, in each sequence."""
    q, k, v, g = (x.flip(1) for x in (q, k, v, g))
    if offsets is None:
        o, last = gated_linear_attention(q, k, v, g, scale, state, output_final_state)
        return o.flip(1), last
    if int(offsets[-1]) != q.shape[1]:
        raise ValueError(f"cu_seqlens ends at {int(offsets[-1])}, expected T={q.shape[1]} with reverse=True")
    state = None if state is None else state.flip(0)
    o, last = gated_linear_attention(q, k, v, g, scale, state, output_final_state, (q.shape[1] - offsets).flip(0))
    return o.flip(1), None if last is None else last.flip(0)


def _key_sums(k: Tensor, before: Tensor | None, offsets: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """Running sums of keys, [B, T, H, K], and those after the last step, [N, 1, H, K]."""
    k = k.to(torch.promote_types(k.dtype, torch.float32))
    bounds = [(0, k.shape[1])] if offsets is None else list(pairwise(offsets.tolist()))
    sums, lasts = [], []
    for n, (start, end) in enumerate(bounds):
        part = k[:, start:end]
        part = part.flip(1).cumsum(1).flip(1) if reverse else part.cumsum(1)
        first = k.new_zeros(k.shape[0], 1, *k.shape[2:])
        if before is not None:
            first = first + (before if offsets is None else before[n : n + 1])
        sums.append(part + first)
        lasts.append(first if start == end else sums[-1][:, :1] if reverse else sums[-1][:, -1:])
    sums.append(k.new_zeros(k.shape[0], k.shape[1] - bounds[-1][1], *k.shape[2:]))
    return torch.cat(sums, 1), torch.cat(lasts)
