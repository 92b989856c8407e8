"""Spike coder, first half: an adaptive threshold for each row, and integer spike counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.rules import in_range, one_of
from ...declare.spec import Case, Input, Output

LIMIT = 32767


def reference(
    x: Tensor,
    k: float = 3.0,
    vth_min: float = 1e-5,
    vth_max: float = 1e4,
    mean_dtype: str = "float32",
) -> tuple[Tensor, Tensor]:
    work = x if x.dtype == torch.float64 else x.float()
    mean = work.abs().mean(-1, keepdim=True) if x.shape[-1] else work.new_zeros(*x.shape[:-1], 1)
    if mean_dtype == "input":
        mean = mean.to(x.dtype).to(work.dtype)
    v_threshold = (mean / k).clamp(vth_min, vth_max)
    ratio = torch.nan_to_num(work / v_threshold, nan=0.0, posinf=LIMIT, neginf=-LIMIT)
    return ratio.round().clamp(-LIMIT, LIMIT).to(torch.int16), v_threshold


SPEC = operator(
    "spike_encode",
    reference=reference,
    inputs={"x": Input("... K", fill="activations", doc="activations")},
    outputs={"counts": Output("... K", "int16"), "v_threshold": Output("... 1", "acc")},
    rules=(
        in_range("k", 1e-30, text="a positive number"),
        in_range("vth_min", 1e-38, text="a positive number"),
        lambda a: (
            None
            if a["vth_min"] <= a["vth_max"]
            else f"vth_max is {a['vth_max']}, expected at least vth_min, which is {a['vth_min']}"
        ),
        one_of("mean_dtype", "float32", "input"),
    ),
    cases=(
        Case({"...": (4,), "K": 128}),
        Case({"...": (2, 3), "K": 7}),
        Case({"...": (), "K": 33}),
        Case({"...": (5,), "K": 1}),
        Case({"...": (3, 17), "K": 300}, {"k": 2.5}),
        Case({"...": (9,), "K": 64}, {"mean_dtype": "input"}),
        Case({"...": (0,), "K": 8}),
        Case({"...": (3,), "K": 0}),
    ),
    bench=(Case({"...": (4096,), "K": 3584}),),
    flops=lambda a: 3.0 * a["x"].numel(),
    source="SpikingBrain technical report, eqs. 19-21",
)


def spike_encode(
    x: Tensor,
    k: float = 3.0,
    vth_min: float = 1e-5,
    vth_max: float = 1e4,
    mean_dtype: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Turn activations into integer spike counts under a threshold that adapts to each row.

    ``v_threshold = clamp(mean(|x|) / k, vth_min, vth_max)`` over the last axis, and
    ``counts = round(x / v_threshold)`` with ties to even, saturating at +-32767. NaN gives count 0, and its row
    v_threshold NaN. Not differentiable; :func:`spike_quantize` is.

    Args:
        x: Activations, [..., K], float32, bfloat16 or float16.
        k: Mean count of a row; 3 in the released models.
        vth_min: Smallest threshold.
        vth_max: Largest threshold.
        mean_dtype: ``"float32"``, or ``"input"`` to round the mean to x's dtype as the released checkpoints do.

    Returns:
        counts, [..., K], int16; and v_threshold, [..., 1], float32.

    Raises:
        ValueError: k or a limit is not positive, or mean_dtype is neither.
        TypeError: x is not a float tensor.

    Source: SpikingBrain technical report, eqs. 19-21.
    """
    counts, v_threshold = call(SPEC, x, k, vth_min, vth_max, mean_dtype)
    return counts, v_threshold
