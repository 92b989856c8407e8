"""A linear layer on spike counts: integer codes times integer counts, and floats only between groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.rules import one_of
from ...declare.spec import Case, Input, Output

GROUP_SIZES = (32, 64, 128)
OUT_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def reference(
    counts: Tensor,
    v_threshold: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    group_size: int = 128,
    out_dtype: str = "float32",
) -> Tensor:
    """float64 holds every group's sum exactly."""
    total = v_threshold.new_zeros(*counts.shape[:-1], weight.shape[0])
    for group in range(scales.shape[1]):
        k = slice(group * group_size, (group + 1) * group_size)
        sums = counts[..., k].double() @ weight[:, k].double().T
        total = total + sums.to(total.dtype) * scales[:, group]
    y = v_threshold * total
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y if y.dtype == torch.float64 else y.to(getattr(torch, out_dtype))


def _group_size(a: Mapping[str, Any]) -> str | None:
    if a["group_size"] not in GROUP_SIZES:
        return f"group_size is {a['group_size']}, expected {', '.join(map(str, GROUP_SIZES[:-1]))} or {GROUP_SIZES[-1]}"
    if a["K"] % a["group_size"]:
        return f"axis K of counts is {a['K']}, expected a multiple of group_size, which is {a['group_size']}"
    return None


def _groups(weight: Tensor, group_size: int) -> int:
    return weight.shape[-1] // group_size if weight.dim() and group_size in GROUP_SIZES else 0


def _case(shape: tuple[int, ...], width: int, outputs: int, bias: bool = False, **attrs: Any) -> Case:
    return Case({"...": shape, "K": width, "N": outputs}, attrs, ("bias",) if bias else ())


SPEC = operator(
    "spike_linear",
    reference=reference,
    inputs={
        "counts": Input("... K", "int16", fill="long_tailed", doc="spike counts"),
        "v_threshold": Input("... 1", "float32", fill="count_threshold", doc="what one spike is worth, by row"),
        "weight": Input("N K", "int8|int16", fill="codes", doc="integer codes"),
        "scales": Input("N G", "float32", fill="code_scales", doc="what one step of a code is worth, by group"),
        "bias": Input("N", doc="bias"),
    },
    outputs={"y": Output("... N", "out_dtype")},
    derived={"G": _groups},
    rules=(_group_size, one_of("out_dtype", *OUT_DTYPES.values())),
    differentiable=("v_threshold", "scales", "bias"),
    cases=(
        _case((9,), 640, 70, bias=True),
        _case((1,), 384, 45),
        _case((67,), 1152, 33, bias=True, out_dtype="bfloat16"),
        _case((2, 3), 128, 37),
        _case((13,), 192, 40, group_size=64, out_dtype="float16"),
        _case((5,), 96, 17, bias=True, group_size=32),
        _case((1100,), 64, 3, group_size=64),
        _case((), 256, 1, bias=True),
        _case((0,), 128, 8),
        _case((3,), 256, 0),
        _case((3,), 0, 5, bias=True),
    ),
    bench=(_case((1,), 3584, 18944), _case((512,), 3584, 18944), _case((512,), 3584, 3584)),
    flops=lambda a: 2.0 * a["counts"].numel() * a["weight"].shape[0],
    products=("counts", "weight"),
    source="SpikingBrain technical report, eqs. 22-23",
)


def spike_linear(
    counts: Tensor,
    v_threshold: Tensor,
    weight: Tensor,
    scales: Tensor,
    group_size: int = 128,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply spike counts by integer weights, exactly.

    ``y = v_threshold * sum_g(scales[:, g] * sum_{k in g}(counts_k * weight_k)) + bias`` over groups g of group_size
    neighbouring inputs. The inner sums are integers and never rounded or wrapped, whatever counts and codes are; the
    outer one is float32, first group first, so a row gives the same bits alone and in a batch. Codes of 8-bit
    quantizers that lie beyond int8 go into an int16 weight; codes past 511 are slow. Counts and weight have no
    gradient.

    Args:
        counts: Spike counts, [..., K], int16, as :func:`spike_encode` gives them. K is a multiple of group_size.
        v_threshold: What one spike of a row is worth, [..., 1], float32.
        weight: Integer codes, [N, K], int8 or int16.
        scales: What one step of a code is worth, [N, K / group_size], float32.
        group_size: 32, 64 or 128 inputs.
        bias: Added to every row, [N], any float dtype.
        out_dtype: float32, bfloat16 or float16; float32 if absent.

    Returns:
        The products, [..., N], out_dtype.

    Raises:
        ValueError: Shapes disagree, K is not a multiple of group_size, or group_size or out_dtype is none of the above.
        TypeError: A tensor has another dtype, or an argument another type.

    Source: SpikingBrain technical report, eqs. 22-23.
    """
    if out_dtype is None:
        out_dtype = torch.float32
    elif not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"spike_linear: out_dtype is {type(out_dtype).__name__}, expected a torch.dtype or None")
    name = OUT_DTYPES.get(out_dtype, str(out_dtype))
    y: Tensor = call(SPEC, counts, v_threshold, weight, scales, bias, group_size, name)
    return y
