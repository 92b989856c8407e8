"""Activations rounded to whole spikes: what a spike-coded layer feeds its weights."""

from __future__ import annotations

from torch import Tensor

from ...calls.autograd import call
from ...calls.operator import operator
from ...declare.rules import in_range
from ...declare.spec import Case, Input, Output
from .spike_encode import reference as encode


def reference(x: Tensor, k: float = 3.0) -> Tensor:
    counts, v_threshold = encode(x.detach(), k)
    rounded = (counts.to(v_threshold.dtype) * v_threshold).to(x.dtype)
    return rounded + (x - x.detach()) if x.requires_grad else rounded


SPEC = operator(
    "spike_quantize",
    reference=reference,
    inputs={"x": Input("... K", fill="activations", doc="activations")},
    outputs={"y": Output("... K", "x")},
    rules=(in_range("k", 1e-30, text="a positive number"),),
    differentiable=("x",),
    straight_through=True,
    cases=(
        Case({"...": (4,), "K": 128}),
        Case({"...": (2, 3), "K": 7}),
        Case({"...": (), "K": 33}),
        Case({"...": (3, 17), "K": 300}, {"k": 2.5}),
        Case({"...": (4,), "K": 64}, {"k": 2.0}),  # ties that no order of rounding moves
        Case({"...": (0,), "K": 8}),
        Case({"...": (3,), "K": 0}),
    ),
    bench=(Case({"...": (4096,), "K": 3584}),),
    flops=lambda a: 4.0 * a["x"].numel(),
    source="SpikingBrain technical report, eqs. 19-21",
)


def spike_quantize(x: Tensor, k: float = 3.0) -> Tensor:
    """Round activations to whole multiples of their row's adaptive threshold.

    ``counts * v_threshold`` of :func:`spike_encode`, in one read and one write. The gradient passes straight through.

    Args:
        x: Activations, [..., K], float32, bfloat16 or float16.
        k: Mean count of a row.

    Returns:
        The rounded activations, [..., K], dtype of x.

    Raises:
        ValueError: k is not positive.
        TypeError: x is not a float tensor.

    Source: SpikingBrain technical report, eqs. 19-21; straight-through gradient, Bengio et al. 2013, arXiv:1308.3432.
    """
    y: Tensor = call(SPEC, x, k)
    return y
