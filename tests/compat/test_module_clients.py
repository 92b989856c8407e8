"""Scripts written against fla's modules and small functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from client import PROFILES, agree, rotate, run
from torch import Tensor

from spikingbrain_hal.errors import UnsupportedOp

D = 12


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def rms(x: Tensor, weight: Tensor | None, eps: float = 1e-5) -> Tensor:
    y = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(profile: str, prenorm: bool, with_residual: bool) -> None:
    x, residual, w = tensors((2, 5, D), (2, 5, D), (D,))
    source = """
        from fla.modules import RMSNorm
        norm = RMSNorm(hidden_size=12, eps=1e-6)
        norm.load_state_dict({"weight": w})
        norm.weight.requires_grad_(False).copy_(w)
        out = norm(x, residual, prenorm)
        weight = norm.weight
    """
    got = run(
        source, dict(x=x, residual=residual if with_residual else None, w=w.detach(), prenorm=prenorm), fla=profile
    )
    total = x + residual if with_residual else x
    wanted = [rms(total, w.detach(), 1e-6), *([total] if prenorm else [])]
    agree(list(got["out"]) if prenorm else [got["out"]], wanted, [x, residual] if with_residual else [x])


def test_rms_norm_trains_its_weight() -> None:
    got = run("from fla.modules import RMSNorm\nnorm = RMSNorm(12, True, True)", fla="0.1")["norm"]
    x = tensors((3, D))[0]
    agree([got(x)], [F.rms_norm(x, (D,), got.weight, 1e-5) + got.bias], [x, got.weight, got.bias])
    assert sorted(got.state_dict()) == ["bias", "weight"]


def test_residual_keeps_its_dtype() -> None:
    x, residual = torch.randn(4, D).bfloat16(), torch.randn(4, D)
    source = """
        from fla.modules.layernorm import RMSNorm
        norm = RMSNorm(12).bfloat16()
        y, total = norm(x, residual=residual, prenorm=True)
        _, alone = norm(x, prenorm=True, residual_in_fp32=True)
        _, plain = norm(x, prenorm=True)
    """
    got = run(source, dict(x=x, residual=residual), fla="0.4")
    assert [got[n].dtype for n in ("y", "plain")] == [torch.bfloat16] * 2
    assert [got[n].dtype for n in ("total", "alone")] == [torch.float32] * 2
    torch.testing.assert_close(got["total"], x.float() + residual)
    torch.testing.assert_close(got["y"], rms(x.float() + residual, None).bfloat16())


NORMS = {
    "LayerNorm(12)": lambda m, x: F.layer_norm(x, (D,), m.weight, m.bias),
    "LayerNorm(12, True, True, 1e-3)": lambda m, x: F.layer_norm(x, (D,), m.weight, m.bias, 1e-3),
    "RMSNorm(12, elementwise_affine=False)": lambda m, x: rms(x, None),
    "GroupNorm(3, 12)": lambda m, x: F.group_norm(x.flatten(0, -2), 3, m.weight, m.bias).view(x.shape),
    "GroupNorm(num_groups=3, hidden_size=12, is_rms_norm=True)": lambda m, x: (
        rms(x.unflatten(-1, (3, 4)), None).flatten(-2) * m.weight
    ),
}


@pytest.mark.parametrize("call", NORMS)
def test_other_norms(call: str) -> None:
    module = run(f"from fla.modules import *\nfrom fla.modules.layernorm import GroupNorm\nm = {call}")["m"]
    for p in module.parameters():
        torch.nn.init.normal_(p)
    x = tensors((2, 3, D))[0]
    agree([module(x)], [NORMS[call](module, x)], [x, *module.parameters()])


@pytest.mark.parametrize("activation", ["swish", "silu", "sigmoid"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_gated_norm(activation: str, with_residual: bool) -> None:
    x, g, residual = tensors((2, 5, D), (2, 5, D), (2, 5, D))
    source = f"""
        from fla.modules import FusedRMSNormGated
        norm = FusedRMSNormGated(12, True, 1e-4, "{activation}")
        torch.nn.init.normal_(norm.weight)
        y, total = norm(x, g, residual, True)
    """
    got = run(source, dict(x=x, g=g, residual=residual if with_residual else None))
    total = x + residual if with_residual else x
    gate = torch.sigmoid(g) * (1 if activation == "sigmoid" else g)
    wanted = [rms(total, got["norm"].weight, 1e-4) * gate, total]
    agree([got["y"], got["total"]], wanted, [x, g, got["norm"].weight])


def test_gated_norm_under_its_old_name() -> None:
    x, g = tensors((3, D), (3, D))
    got = run("from fla.modules import FusedRMSNormSwishGate\ny = FusedRMSNormSwishGate(12)(x, o=g)",
              dict(x=x, g=g), fla="0.1")  # fmt: skip
    agree([got["y"]], [rms(x, None) * F.silu(g)], [x, g])


def convolved(x: Tensor, taps: Tensor, bias: Tensor | None, before: Tensor | None = None) -> Tensor:
    """Sums shifted inputs; before is [B, D, W]."""
    width = taps.shape[-1]
    past = x.new_zeros(x.shape[0], width, x.shape[2]) if before is None else before.transpose(1, 2)
    full = torch.cat((past, x), 1)
    parts = [full[:, 1 + j : 1 + j + x.shape[1]] * taps[:, j] for j in range(width)]
    y = torch.stack(parts).sum(0)
    return F.silu(y if bias is None else y + bias)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("bias", [False, True])
def test_short_convolution(profile: str, bias: bool) -> None:
    x = tensors((2, 7, D))[0]
    source = """
        from fla.modules import ShortConvolution
        conv = ShortConvolution(12, 4, bias, "silu", **extra)
        y, cache = conv(x, output_final_state=True)
        a, state = conv(x[:, :5], output_final_state=True)
        b, after = conv(x[:, 5:6], cache=state, output_final_state=True)
        c, last = conv(x[:, 6:], cache=after, output_final_state=True)
        assert after is state and last is state
        alone, none = conv(x)
    """
    extra = {"use_fast_conv1d": False} if profile != "current" else {"backend": "cuda"}
    got = run(source, dict(x=x, bias=bias, extra=extra), fla=profile)
    conv = got["conv"]
    assert conv.weight.shape == (D, 1, 4)
    assert conv.state_size == 4 * D
    assert got["none"] is None
    wanted = convolved(x, conv.weight[:, 0], conv.bias)
    agree([got["y"]], [wanted], [x, *conv.parameters()])
    torch.testing.assert_close(torch.cat([got[n] for n in "abc"], 1), wanted)
    torch.testing.assert_close(got["cache"], x[:, 3:].transpose(1, 2))
    torch.testing.assert_close(got["last"], got["cache"])


def test_short_convolution_of_packed_sequences() -> None:
    x, residual = tensors((1, 9, D), (1, 9, D))
    start = torch.randn(3, D, 4)
    source = """
        from fla.modules import ShortConvolution
        conv = ShortConvolution(hidden_size=12, kernel_size=4, bias=True)
        y, state = conv(x, residual, cache=start, cu_seqlens=cu, output_final_state=True)
    """
    got = run(source, dict(x=x, residual=residual, start=start, cu=torch.tensor([0, 2, 2, 8])), fla="0.4")
    conv = got["conv"]
    parts = [convolved(x[:, a:b], conv.weight[:, 0], conv.bias, start[n : n + 1]) for n, a, b in ((0, 0, 2), (2, 2, 8))]
    agree([got["y"][:, :8]], [torch.cat(parts, 1) + residual[:, :8]], [x, residual, *conv.parameters()])
    torch.testing.assert_close(got["state"][1], start[1])
    torch.testing.assert_close(got["state"][0], torch.cat((start[0, :, 2:], x[0, :2].T), 1))


def test_short_convolution_of_fla_01_by_position() -> None:
    x, mask = torch.randn(2, 6, D), torch.ones(2, 6)
    mask[0, :2] = 0
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 2, 2, 2]])
    source = """
        from fla.modules import ShortConvolution
        conv = ShortConvolution(12, 3, False, None, False)
        cache = torch.zeros(2, 12, 3)
        y, same = conv(x.clone(), mask, cache)
        assert same is cache
        packed, _ = conv(x, seq_idx=numbers)
        row, _ = conv(x[1:, 3:])
    """
    got = run(source, dict(x=x, mask=mask, numbers=numbers), fla="0.1")
    taps = got["conv"].weight[:, 0].detach()
    padded = F.pad(x * mask[..., None], (0, 0, 2, 0))
    torch.testing.assert_close(got["y"], sum(padded[:, j : j + 6] * taps[:, j] for j in range(3)))
    torch.testing.assert_close(got["cache"], x[:, 3:].mT)
    torch.testing.assert_close(got["packed"][1:, 3:], got["row"])


def test_causal_conv1d_function() -> None:
    x, w = tensors((1, 5, D), (D, 3))
    got = run("from fla.modules.convolution import causal_conv1d\ny, s = causal_conv1d(x, w, activation='swish')",
              dict(x=x, w=w))  # fmt: skip
    agree([got["y"]], [convolved(x, w, None)], [x, w])
    assert got["s"] is None


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offset", [0, 5, "each"])
def test_rotary_embedding(interleaved: bool, offset: Any) -> None:
    q, k = tensors((2, 6, 3, 8), (2, 6, 1, 8))
    place = torch.arange(6) + (torch.tensor([[2], [7]]) if offset == "each" else offset)
    source = """
        from fla.modules import RotaryEmbedding
        rotary = RotaryEmbedding(dim=8, base=500.0, interleaved=interleaved)
        a, b = rotary(q, k, seqlen_offset=offset)
    """
    given = torch.tensor([2, 7]) if offset == "each" else offset
    got = run(source, dict(q=q, k=k, interleaved=interleaved, offset=given), fla="0.1")
    wanted = [rotate(x, place, 500.0, interleaved) for x in (q, k)]
    agree([got["a"], got["b"]], wanted, [q, k])
    assert got["rotary"].state_dict() == {}


def test_rotary_embedding_of_packed_sequences() -> None:
    q, k = tensors((1, 7, 2, 8), (1, 7, 2, 8))
    source = """
        from fla.modules import RotaryEmbedding
        a, b = RotaryEmbedding(8)(q, k, torch.tensor([4, 0, 1]), cu, 16)
    """
    got = run(source, dict(q=q, k=k, cu=torch.tensor([0, 2, 2, 7], dtype=torch.int32)), fla="0.4")
    place = torch.tensor([4, 5, 1, 2, 3, 4, 5])
    agree([got["a"], got["b"]], [rotate(q, place), rotate(k, place)], [q, k])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(reduction: str, smoothing: float) -> None:
    x = tensors((10, 17))[0]
    target = torch.randint(0, 17, (10,))
    target[3] = -100
    source = """
        from fla.modules import FusedCrossEntropyLoss
        loss = FusedCrossEntropyLoss(-100, reduction, smoothing, 0.7, 1e-2, inplace_backward=True, return_z_loss=True)
        out, z = loss(x, target)
    """
    got = run(source, dict(x=x, target=target, reduction=reduction, smoothing=smoothing), fla="0.1")
    rows = F.cross_entropy(0.7 * x, target, reduction="none", label_smoothing=smoothing)
    z = 1e-2 * (0.7 * x).logsumexp(-1).pow(2) * (target != -100)
    reduce = {"none": lambda t: t, "sum": torch.sum, "mean": lambda t: t.sum() / 9}[reduction]
    agree([got["out"]], [reduce(rows + z)], [x])
    torch.testing.assert_close(got["z"], reduce(z).detach())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunks", [1, 8])
@pytest.mark.parametrize(("warp", "profile"), [(False, "current"), (True, "current"), (True, "0.4")])
def test_linear_cross_entropy(reduction: str, chunks: int, warp: bool, profile: str) -> None:
    """fla 0.4 divides the pull as the loss, current fla by all tokens."""
    x, w, b = tensors((2, 5, D), (17, D), (17,))
    target = torch.randint(0, 17, (2, 5))
    target[0, :4] = -100
    source = """
        from fla.modules import FusedLinearCrossEntropyLoss
        loss = FusedLinearCrossEntropyLoss(num_chunks=chunks, reduction=reduction, use_l2warp=warp,
                                           l2_penalty_factor=0.3)
        out = loss(x, target, w, b)
    """
    got = run(source, dict(x=x, target=target, w=w, b=b, chunks=chunks, reduction=reduction, warp=warp), fla=profile)
    logits = F.linear(x, w, b)
    wanted = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction=reduction)
    if warp:  # the gradient of the largest logits, by hand
        pull = torch.zeros_like(logits)
        top = logits.detach().max(-1, keepdim=True)
        divisor = 10 if profile == "current" else {"mean": 6, "sum": 1}[reduction]
        pull.scatter_(-1, top.indices, 0.3 / divisor * top.values)
        wanted = wanted + (logits * pull).sum() - (logits * pull).sum().detach()
    agree([got["out"]], [wanted], [x, w, b])


@pytest.mark.parametrize(("profile", "times"), [("0.4", 1), ("current", 8)])
def test_l2_warp(profile: str, times: int) -> None:
    """Under a loss scaler of 8: the pull of fla 0.4 doesn't grow with the incoming gradient."""
    logits = tensors((2, 3, 7))[0]
    source = "from fla.modules.l2warp import l2_warp\nout = l2_warp(logits.sum(), logits, 0.5)"
    out = run(source, dict(logits=logits), fla=profile)["out"]
    assert torch.equal(out, logits.sum())
    (gradient,) = torch.autograd.grad(8 * out, [logits])
    top = logits.detach().max(-1, keepdim=True)
    wanted = torch.full((2, 3, 7), 8.0).scatter_add(-1, top.indices, times * 0.5 / 6 * top.values)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("fuse", [False, True])
def test_gated_mlp(fuse: bool) -> None:
    x = tensors((2, 3, D))[0]
    got = run("from fla.modules import GatedMLP\nm = GatedMLP(12, 4, 20, 'swish', fuse)\ny = m(x, unused=1)",
              dict(x=x, fuse=fuse), fla="0.4")  # fmt: skip
    m = got["m"]
    names = ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]
    assert sorted(m.state_dict()) == names
    up = F.silu(F.linear(x, m.gate_proj.weight)) * F.linear(x, m.up_proj.weight)
    agree([got["y"]], [F.linear(up, m.down_proj.weight)], [x, *m.parameters()])
    assert run("from fla.modules.mlp import GatedMLP\nn = GatedMLP(1024).intermediate_size")["n"] == 2816


ACTIVATIONS = {
    "sigmoid(x)": lambda x, y: 1 / (1 + torch.exp(-x)),
    "logsigmoid(x, 16)": lambda x, y: -torch.log1p(torch.exp(-x)) / 16,
    "swish(x)": lambda x, y: x / (1 + torch.exp(-x)),
    "ACT2FN['silu'](x)": lambda x, y: x / (1 + torch.exp(-x)),
    "swiglu(x, y)": lambda x, y: x * y / (1 + torch.exp(-x)),
    "swiglu_linear(x, y, torch.eye(12)[:5], None)": lambda x, y: (x * y / (1 + torch.exp(-x)))[..., :5],
    "sqrelu(x)": lambda x, y: x * x * (x > 0),
    "ACT2FN['bias_gelu'](x, y)": lambda x, y: (
        0.5 * (x + y) * (1 + torch.tanh(0.7978845608 * ((x + y) + 0.044715 * (x + y) ** 3)))
    ),
}


@pytest.mark.parametrize("call", ACTIVATIONS)
def test_activations(call: str) -> None:
    x, y = tensors((3, D), (3, D))
    got = run(f"from fla.modules.activations import *\nfrom fla.modules.activations import ACT2FN\nout = {call}",
              dict(x=x, y=y), fla="0.1")  # fmt: skip
    agree([got["out"]], [ACTIVATIONS[call](x, y)], [x])


def test_l2norm() -> None:
    x = tensors((2, 3, D))[0]
    got = run("from fla.modules.l2norm import l2norm\ny = l2norm(x)", dict(x=x))
    agree([got["y"]], [x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()], [x])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("FusedRMSNormGated(4, activation='relu')", ValueError, "activation is 'relu'"),
        ("GroupNorm(3, 4)", ValueError, "hidden_size is 4, expected a multiple of num_groups=3"),
        ("ShortConvolution(4, 3, activation='gelu')", ValueError, "activation is 'gelu'"),
        ("GatedMLP(4, hidden_act='gelu')", ValueError, "hidden_act is 'gelu'"),
        ("RotaryEmbedding(4, scale_base=512)", UnsupportedOp, "scale_base is 512"),
        ("FusedCrossEntropyLoss(reduction='max')", ValueError, "reduction is 'max'"),
        ("FusedCrossEntropyLoss(process_group=1)", UnsupportedOp, "process_group is 1"),
        ("FusedLinearCrossEntropyLoss(reduction='none')", ValueError, "reduction is 'none'"),
    ],
)
def test_wrong_arguments(call: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        run(f"from fla.modules import *\n{call}")
    assert words in str(caught.value)


def test_index_functions_of_fla_01() -> None:
    source = """
        from fla.ops.common.utils import prepare_chunk_offsets, prepare_lens, prepare_position_ids, prepare_sequence_ids
        place = prepare_position_ids(cu)
        numbers = prepare_sequence_ids(place)
        lengths, chunks = prepare_lens(cu), prepare_chunk_offsets(cu, 2)
    """
    got = run(source, dict(cu=torch.tensor([0, 3, 5])), fla="0.1")
    assert got["place"].tolist() == [0, 1, 2, 0, 1]
    assert got["numbers"].tolist() == [0, 0, 0, 1, 1]
    assert got["lengths"].tolist() == [3, 2]
    assert got["chunks"].tolist() == [0, 2, 3]


def test_support_functions() -> None:
    source = """
        from fla.utils import (assert_close, check_pytorch_version, checkpoint, custom_device_ctx, device, input_guard,
                               is_amd, require_version, tensor_cache)

        @input_guard
        def whole(x, y=None):
            return x.is_contiguous() and y.is_contiguous()

        @input_guard(no_guard_contiguous=["y"])
        def part(x, y=None):
            return x.is_contiguous() and not y.is_contiguous()

        answers = whole(x.T, y=x.T), part(x.T, y=x.T), check_pytorch_version("2.4"), not check_pytorch_version("99")
        y = checkpoint(tensor_cache(require_version("x>1", "hint")(torch.sin)))(x)
        assert_close("y", x, x + 1e-7, 1e-3)
        with custom_device_ctx(None):
            assert isinstance(device, str)
    """
    x = tensors((3, 4))[0]
    got = run(source, dict(x=x), fla="0.1")
    assert got["answers"] == (True,) * 4
    agree([got["y"]], [x.sin()], [x])
    with pytest.raises(AssertionError, match="y: error ratio"):
        got["assert_close"]("y", x, 2 * x, 1e-3)
