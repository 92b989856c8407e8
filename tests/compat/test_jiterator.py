"""``torch.cuda.jiterator`` computes without a GPU: released activations are written for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from client import agree
from torch import Tensor

from spikingbrain_hal import compat
from spikingbrain_hal.errors import UnsupportedOp

T = "template <typename T> T f"
EXPRESSIONS: dict[str, Any] = {
    "(T x, T y) { return x * y + 1; }": lambda x, y: x * y + 1,
    "(T x, T y) { return float(x) / (1.0f + ::exp(-float(y))); }": lambda x, y: x * torch.sigmoid(y),
    "(T x, T y) { T a = x; a += y; a *= 2.0f; a -= 1; a /= 4; return -a; }": lambda x, y: -((x + y) * 2 - 1) / 4,
    "(T x, T y) { return x > y ? x : y - 1; }": lambda x, y: torch.where(x > y, x, y - 1),
    "(T x, T y) { return x < T(0) && !(y >= 0) || x == y ? x : T(0); }": lambda x, y: x * ((x < 0) & (y < 0)),
    "(T x, T y) { const auto a = std::tanh(x); return std::max(a, y) - fabs(min(x, y)); }": lambda x, y: (
        torch.maximum(x.tanh(), y) - torch.minimum(x, y).abs()
    ),
    "(T x, T y) { double a = (double)x; return (float)(::log1p(a * a)) + pow(y, 2); }": lambda x, y: (
        (x * x).log1p() + y * y
    ),
    "(T x, T y) { // a comment\n return 3 / 2 + x /* and another */ - 1.5e0 + .5f; }": lambda x, y: x + 0 * y,
    "(T x, T y) { return x - y - 1 - 2.f * 3 / 4; }": lambda x, y: x - y - 1 - 1.5,
    "(T x, T y) { return expf(x) + sqrtf(fabsf(y)); }": lambda x, y: x.exp() + y.abs().sqrt(),
}


@pytest.mark.parametrize("body", EXPRESSIONS)
def test_expressions(body: str) -> None:
    x, y = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    with compat.installed():
        f = torch.cuda.jiterator._create_jit_fn(T + body)
    agree([f(x, y)], [EXPRESSIONS[body](x, y)], [x])


ACTIVATION = """
import torch

swish_code = '''
template <typename T> T gate(T x) { return 1.0f / (1.0f + ::exp(-float(x))); }
template <typename T> T swish(T x, T y) {
    float s = gate(float(x));
    return float(x) * s * float(y);
}
'''
backward_code = '''
template <typename T> T swish_backward(T x, T y, T g, T& dx, T& dy) {
    float s = 1.0f / (1.0f + ::exp(-float(x)));
    dx = s * (1 + float(x) * (1.0f - s)) * float(g) * float(y);
    dy = float(x) * s * float(g);
}
'''
forward = torch.cuda.jiterator._create_jit_fn(swish_code)
backward = torch.cuda.jiterator._create_multi_output_jit_fn(backward_code, num_outputs=2)

class Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return forward(x, y)

    @staticmethod
    def backward(ctx, g):
        return backward(*ctx.saved_tensors, g)
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_with_a_gradient_of_its_own(dtype: torch.dtype) -> None:
    names: dict[str, Any] = {}
    with compat.installed(fla="0.1"):
        exec(ACTIVATION, names)
    x, y = (torch.randn(5, 6, dtype=dtype, requires_grad=True) for _ in range(2))
    wanted = (torch.nn.functional.silu(x.float()) * y.float()).to(dtype)
    agree([names["Gated"].apply(x, y)], [wanted], [x, y], 2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_half_types_are_widened_as_in_cpp() -> None:
    """``T * T`` rounds in between; ``float(T) * T`` does not."""
    x = torch.full((1,), 1.0078125, dtype=torch.bfloat16)
    with compat.installed():
        narrow = torch.cuda.jiterator._create_jit_fn(T + "(T x) { return (x * x - T(1)) * 64; }")
        wide = torch.cuda.jiterator._create_jit_fn(T + "(T x) { return (float(x) * x - T(1)) * 64; }")
    assert narrow(x).item() == 1.0
    assert wide(x).item() == torch.tensor(64 * (1.0078125**2 - 1)).bfloat16().item()


def test_broadcasting_promotion_and_defaults() -> None:
    with compat.installed():
        f = torch.cuda.jiterator._create_jit_fn(T + "(T x, T y, T alpha) { return x + alpha * y; }", alpha=2.0)
        many = torch.cuda.jiterator._create_multi_output_jit_fn(
            "template <typename T> void f(T x, T &a, T& b) { a = x; b = 3; }", num_outputs=2
        )
    x, y = torch.ones(3, 1, dtype=torch.bfloat16), torch.ones(4)
    assert torch.equal(f(x, y), torch.full((3, 4), 3.0))
    assert torch.equal(f(x, y, alpha=0.5), torch.full((3, 4), 1.5))
    a, b = many(y)
    assert torch.equal(a, y)
    assert torch.equal(b, torch.full((4,), 3.0))
    with pytest.raises(KeyError, match="beta"):
        f(x, y, beta=1)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("(T x) { if (x > 0) return x; }", "'if'"),
        ("(T x) { return lgamma(x); }", "'lgamma'"),
        ("(T x) { return y; }", "'y'"),
        ("(T x) { return x % 2; }", "'% 2"),
        ("(T x) { T a = x; }", "returns nothing"),
        ("(T x) { return (x; }", "';' is not understood where )"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(code: str, words: str) -> None:
    with compat.installed():
        f = torch.cuda.jiterator._create_jit_fn(T + code)
    with pytest.raises(UnsupportedOp) as caught:
        f(torch.ones(2))
    assert words in str(caught.value)


def test_the_original_is_back_afterwards() -> None:
    before = torch.cuda.jiterator._create_jit_fn
    with compat.installed():
        assert torch.cuda.jiterator._create_jit_fn is not before
    assert torch.cuda.jiterator._create_jit_fn is before


def test_no_function_at_all() -> None:
    with compat.installed():
        f: Any = torch.cuda.jiterator._create_jit_fn("nonsense")
    with pytest.raises(UnsupportedOp, match="no template function"):
        f(Tensor())
