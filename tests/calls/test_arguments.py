"""Arguments of any type and dtype to every public function, in every mode of torch: a result, or an error in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from spikingbrain_hal import ops

Q = torch.randn(1, 4, 2, 8, generator=torch.Generator().manual_seed(0))
COUNTS = torch.ones(2, 32, dtype=torch.int16)
CALLS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "attention": lambda: {"q": Q, "k": Q, "v": Q},
    "gated_linear_attention": lambda: {"q": Q, "k": Q, "v": Q, "g": -Q.abs()},
    "gated_linear_attention_step_": lambda: {
        **dict.fromkeys("qkv", Q[:, 0]),
        "g": -Q[:, 0].abs(),
        "state": torch.zeros(1, 2, 8, 8),
    },
    "lif_scan": lambda: {"x": Q},
    "spike_encode": lambda: {"x": Q},
    "spike_quantize": lambda: {"x": Q},
    "spike_expand": lambda: {"counts": COUNTS, "coding": "bitwise_signed"},
    "spike_collapse": lambda: {"trains": torch.ones(3, 4, dtype=torch.int8), "coding": "ternary"},
    "spike_linear": lambda: {
        "counts": COUNTS,
        "v_threshold": torch.ones(2, 1),
        "weight": torch.ones(5, 32, dtype=torch.int8),
        "scales": torch.ones(5, 1),
        "group_size": 32,
    },
}
NEVER_RIGHT = [np.ones((1, 4, 2, 8)), np.ones(3), [1.0], [], {}, b"x", object()]
HARDLY_RIGHT = [
    None,
    0,
    -1,
    1.5,
    "x",
    torch.ones(()),
    torch.zeros(3),
    1 << 70,
    float("nan"),
    np.float32(0.5),
    torch.int8,
]
OTHER_DTYPES = [Q.long(), Q.bool(), Q.to(torch.complex64), Q.double()]
MODES: Mapping[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
}
CASTABLE = ("attention", "gated_linear_attention", "gated_linear_attention_step_")


def test_every_public_function_is_here() -> None:
    assert sorted(CALLS) == sorted(ops.__all__)


def refusal(op: str, mode: str, parameter: str, given: Any) -> str | None:
    """What a call with one other argument is refused with; None if it is accepted."""
    try:
        with MODES[mode]():
            getattr(ops, op)(**{**CALLS[op](), parameter: given})
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", CALLS)
def test_a_wrong_argument_is_refused_by_name(op: str, mode: str) -> None:
    for parameter in inspect.signature(getattr(ops, op)).parameters:
        for given in (*NEVER_RIGHT, *HARDLY_RIGHT, *OTHER_DTYPES):
            message = refusal(op, mode, parameter, given)
            if message is not None or any(given is never for never in NEVER_RIGHT):
                what = f"{parameter}={given!r}"[:80]
                assert message, f"{what} was accepted"
                assert op in message, what
                assert parameter in message, what


@pytest.mark.parametrize("given", [np.ones((1, 4, 2, 8), np.float32), [1.0], None, 1.5])
def test_transforms_refuse_what_is_no_tensor(given: Any) -> None:
    calls = (
        lambda: torch.func.grad(lambda t: ops.attention(t, given, Q).sum())(Q),
        lambda: torch.vmap(lambda t: ops.attention(t, given, t))(Q[None]),
        lambda: torch.func.jvp(lambda t: ops.attention(t, given, Q), (Q,), (Q,)),
    )
    for call in calls:
        with pytest.raises((TypeError, NotImplementedError), match=r"attention: (k is|vmap|forward-mode)"):
            call()


@pytest.mark.parametrize("op", CASTABLE)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_autocast_casts_floats_only(op: str, dtype: torch.dtype) -> None:
    a = CALLS[op]()
    for name in ("q", "k", "v"):
        before = a.get("state", Q).clone()
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(TypeError, match=f"{op}: {name} is {str(dtype)[6:]}"),
        ):
            getattr(ops, op)(**{**a, name: a[name].to(dtype)})
        assert torch.equal(a.get("state", Q), before)


def test_autocast_names_the_dtype_that_was_given() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.attention(Q, Q.half(), Q.bfloat16()).dtype == torch.bfloat16
        assert ops.attention(Q.double(), Q.double(), Q.double()).dtype == torch.float64
        with pytest.raises(TypeError, match="attention: k is float64, expected float32"):
            ops.attention(Q, Q.double(), Q)
        with pytest.raises(TypeError, match="attention: k is float32, expected float64"):
            ops.attention(Q.double(), Q, Q)
        assert ops.attention(*[Q.to("meta")] * 3).is_meta


def test_a_compiled_call_under_autocast_casts_too() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(q: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ops.attention(q, q, q, window=3)

    assert compiled(Q).dtype == torch.bfloat16
