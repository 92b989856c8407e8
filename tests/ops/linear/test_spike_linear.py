"""What conformance cannot see of the integer linear layer, as it allows for rounding: that its sums are exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spikingbrain_hal import ops, testing, use_backend
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.spec import Case

CODES = {torch.int8: (-128, 127), torch.int16: (-32768, 32767)}
WEIGHTS = tuple(CODES)


@pytest.fixture(autouse=True)
def _cpu() -> Iterator[None]:
    with use_backend("cpu"):
        yield


def spread(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> Tensor:
    """Integers of the whole range, both ends among them."""
    values = torch.randint(low, high + 1, shape)
    values.reshape(-1)[:2] = torch.tensor([low, high])
    return values.to(dtype)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("limit", [3, 127, 511, 32768])
def test_group_sums_are_exact(dtype: torch.dtype, group_size: int, limit: int) -> None:
    low, high = CODES[dtype]
    weight = spread((37, group_size), max(low, -limit), min(high, limit), dtype)
    counts = spread((11, group_size), max(-32768, -limit), min(32767, limit), torch.int16)
    found = ops.spike_linear(counts, torch.ones(11, 1), weight, torch.ones(37, 1), group_size)
    assert torch.equal(found, (counts.long() @ weight.long().T).float())


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("count", [-32768, 32767, -129, -128, 127, 128])
@pytest.mark.parametrize("code", ["lowest", "highest", 511, -511, 512, -512])
def test_largest_sums_never_wrap(dtype: torch.dtype, count: int, code: str | int) -> None:
    value = dict(zip(("lowest", "highest"), CODES[dtype], strict=True)).get(str(code), code)
    if not CODES[dtype][0] <= int(value) <= CODES[dtype][1]:
        value = 1
    counts = torch.full((7, 128), count, dtype=torch.int16)
    weight = torch.full((3, 128), int(value), dtype=dtype)
    found = ops.spike_linear(counts, torch.ones(7, 1), weight, torch.ones(3, 1))
    assert torch.equal(found, torch.full((7, 3), 128.0 * count * int(value)))


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_a_row_gives_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    weight, scales = spread((70, 1280), -200, 200, torch.int32).to(dtype), torch.rand(70, 10)
    counts, v_threshold = (5 * torch.randn(40, 1280)).round().to(torch.int16), torch.rand(40, 1)
    counts[:, 0], counts[3] = 4000, 0
    together = ops.spike_linear(counts, v_threshold, weight, scales)
    alone = [ops.spike_linear(c[None], v[None], weight, scales) for c, v in zip(counts, v_threshold, strict=True)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("name", ["spike_linear", "spike_linear_backward"])
@pytest.mark.parametrize("alternative", [False, True], ids=["int8", "int16"])
def test_more_outputs_than_tasks(name: str, alternative: bool) -> None:
    spec, case = OPERATORS[name], Case({"...": (3,), "K": 32, "N": 8300}, {"group_size": 32})
    args = testing.make_inputs(spec, case, alternative=alternative)
    testing.assert_matches(spec, args, spec.raw(*args))


def test_it_is_the_released_computation() -> None:
    x, weight = torch.randn(5, 256), torch.randn(48, 256)
    counts, v_threshold = ops.spike_encode(x)
    scales = weight.unflatten(1, (-1, 128)).abs().amax(2) / 100
    codes = (weight.unflatten(1, (-1, 128)) / scales[..., None]).round()
    bias = torch.randn(48)
    expected = F.linear(counts * v_threshold, (codes * scales[..., None]).flatten(1), bias)
    found = ops.spike_linear(counts, v_threshold, codes.flatten(1).to(torch.int8), scales, bias=bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_gradients_reach_what_is_float() -> None:
    counts, weight = spread((4, 128), -9, 9, torch.int16), spread((6, 128), -99, 99, torch.int8)
    v_threshold, scales, bias = (torch.rand(s, requires_grad=True) for s in ((4, 1), (6, 1), (6,)))
    y = ops.spike_linear(counts, v_threshold, weight, scales, bias=bias, out_dtype=torch.bfloat16)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    sums = counts.float() @ weight.float().T
    torch.testing.assert_close(v_threshold.grad, sums @ scales.detach())
    torch.testing.assert_close(scales.grad, sums.T @ v_threshold.detach())
    assert torch.equal(bias.grad, torch.full((6,), 4.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_results_are_refused(dtype: torch.dtype) -> None:
    counts, weight = torch.zeros(1, 32, dtype=torch.int16), torch.zeros(1, 32, dtype=torch.int8)
    with pytest.raises(ValueError, match="spike_linear: out_dtype is 'torch"):
        ops.spike_linear(counts, torch.ones(1, 1), weight, torch.ones(1, 1), 32, out_dtype=dtype)
