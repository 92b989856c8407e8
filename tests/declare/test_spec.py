"""The declaration: schema, allocation, argument errors, derived backward."""

import pytest
import torch

from spikingbrain_hal.declare.axes import pair_axes
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.spec import Case


@pytest.fixture
def gla():
    return OPERATORS["gated_linear_attention"]


def arguments(**changes):
    given = {
        "q": torch.zeros(2, 3, 4, 8),
        "k": torch.zeros(2, 3, 2, 8),
        "v": torch.zeros(2, 3, 2, 6),
        "g": torch.zeros(2, 3, 2, 8),
        "initial_state": None,
        "cu_seqlens": None,
        "scale": 1.0,
        "output_final_state": True,
    }
    return tuple({**given, **changes}.values())


def test_schema_follows_the_reference(gla):
    assert gla.schema == (
        "gated_linear_attention(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? initial_state, "
        "Tensor? cu_seqlens, float scale, bool output_final_state) -> (Tensor, Tensor)"
    )
    step = OPERATORS["gated_linear_attention_step_"].schema
    assert "Tensor(a4!) state" in step
    assert step.endswith("-> Tensor")


def test_outputs_are_allocated_from_axes(gla):
    o, state = gla.allocate(*arguments())
    assert o.shape == (2, 3, 4, 6)
    assert state.shape == (2, 2, 8, 6)
    assert gla.allocate(*arguments(output_final_state=False))[1].shape == (0,)
    packed = {n: t[:1] for n, t in zip("qkvg", arguments()[:4], strict=True)}
    cu = torch.tensor([0, 1, 3, 3])
    assert gla.allocate(*arguments(**packed, cu_seqlens=cu))[1].shape == (3, 2, 8, 6)
    half = {n: t.bfloat16() for n, t in zip("qkvg", arguments()[:4], strict=True)}
    o, state = gla.allocate(*arguments(**half))
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert gla.allocate(*(t.double() if hasattr(t, "double") else t for t in arguments()))[1].dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"k": None}, TypeError, "k is None"),
        ({"k": 3}, TypeError, "k is int"),
        ({"k": torch.zeros(2, 3, 8)}, ValueError, r"k has shape \[2, 3, 8\]"),
        ({"k": torch.zeros(2, 3, 2, 7)}, ValueError, "axis K of k is 7, expected 8, as in q"),
        ({"k": torch.zeros(2, 3, 2, 8).bfloat16()}, TypeError, "k is bfloat16, expected float32"),
        ({"q": torch.zeros(2, 3, 5, 8)}, ValueError, "Hq is 5, expected a positive multiple of H, which is 2"),
        ({"g": torch.zeros(2, 3, 3)}, ValueError, "axis H of g is 3"),
        ({"initial_state": torch.zeros(3, 2, 8, 6)}, ValueError, "axis N of initial_state is 3"),
        ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, "B is 2, expected 1 with cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0.0])}, TypeError, "cu_seqlens is float32, expected int32 or int64"),
        ({"k": torch.zeros(2, 3, 2, 8, device="meta")}, ValueError, "k is on meta, expected cpu"),
    ],
)
def test_wrong_arguments_are_named(gla, changes, error, words):
    with pytest.raises(error, match=f"gated_linear_attention: .*{words}"):
        gla.check(arguments(**changes))


def test_per_head_gate_is_an_alternative(gla):
    assert gla.check(arguments(g=torch.zeros(2, 3, 2)))["H"] == 2


def test_backward_is_declared_from_the_forward(gla):
    backward = gla.backward
    assert backward.forward is gla
    assert list(backward.inputs) == [*gla.inputs, "grad_o", "grad_final_state"]
    assert list(backward.outputs) == ["grad_q", "grad_k", "grad_v", "grad_g", "grad_initial_state"]
    assert "o" in OPERATORS["attention_backward"].inputs
    assert "spikes" in OPERATORS["lif_scan_backward"].inputs
    assert OPERATORS["spike_quantize"].backward is None


def test_every_case_has_its_own_name():
    for spec in OPERATORS.values():
        names = [case.id for case in spec.cases]
        assert len(set(names)) == len(names), spec.name


def test_axes_pair_with_a_group_anywhere():
    assert pair_axes(["T", "..."], (4, 2, 3)) == [("T", 4), ("...", (2, 3))]
    assert pair_axes(["...", "K"], (4, 2, 3)) == [("...", (4, 2)), ("K", 3)]
    assert pair_axes(["...", "K"], (3,)) == [("...", ()), ("K", 3)]


def test_case_names_are_readable():
    assert Case({"B": 1}, {"scale": 0.5}, ("v0",), (3, 2)).id == "B1-scale=0.5-v0-ragged(3,2)"
