"""Scripts written against flash-attn 2."""

from __future__ import annotations

import textwrap

import pytest
import torch
import torch.nn.functional as F
from client import agree, attend, rotate, run
from torch import Tensor

from spikingbrain_hal.errors import UnsupportedOp

HQ, H, D = 6, 2, 16


def qkv(tq: int, tk: int, batch: int = 2, heads: int = H) -> list[Tensor]:
    shapes = ((batch, tq, HQ, D), (batch, tk, heads, D), (batch, tk, heads, D))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


# Each call with what it sees to the left and right; causal hides the right.
WINDOWS = {
    "flash_attn_func(q, k, v)": (-1, -1),
    "flash_attn_func(q, k, v, causal=True)": (-1, 0),
    "flash_attn_func(q, k, v, 0.0, None, True, (4, 0))": (4, 0),
    "flash_attn_func(q, k, v, causal=True, window_size=(3, 3))": (3, 0),
    "flash_attn_func(q, k, v, causal=False, window_size=(2, 0))": (2, 0),
    "flash_attn_func(q=q, k=k, v=v, causal=True, window_size=(0, 0), deterministic=True)": (0, 0),
    "flash_attn_func(q, k, v, causal=True, window_size=(None, None))": (-1, 0),
    "flash_attn_func(q, k, v, causal=True, window_size=[100, -1])": (100, 0),
}


@pytest.mark.parametrize("call", WINDOWS)
@pytest.mark.parametrize(("tq", "tk"), [(9, 9), (1, 9), (4, 9), (7, 3)])
def test_windows(call: str, tq: int, tk: int) -> None:
    """Alignment at the bottom right, and queries that see no key."""
    q, k, v = qkv(tq, tk)
    got = run(f"from flash_attn import flash_attn_func\no = {call}", dict(q=q, k=k, v=v))
    agree([got["o"]], [attend(q, k, v, *WINDOWS[call])[0]], [q, k, v])


def test_scale_and_lse() -> None:
    q, k, v = qkv(4, 9)
    source = """
        from flash_attn.flash_attn_interface import flash_attn_func
        o, lse, probabilities = flash_attn_func(q, k, v, softmax_scale=0.5, causal=True, return_attn_probs=True)
    """
    got = run(source, dict(q=q, k=k, v=v))
    assert got["probabilities"] is None
    assert got["lse"].shape == (2, HQ, 4)
    agree([got["o"], got["lse"]], list(attend(q, k, v, -1, 0, 0.5)), [q, k, v])


LENGTHS_Q, LENGTHS_K = (3, 0, 5, 1), (3, 2, 7, 1)


def offsets(lengths: tuple[int, ...]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def packed_oracle(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    parts, a, b = [], 0, 0
    for n, m in zip(LENGTHS_Q, LENGTHS_K, strict=True):
        parts.append(attend(q[None, a : a + n], k[None, b : b + m], v[None, b : b + m], left, right))
        a, b = a + n, b + m
    return torch.cat([o[0] for o, _ in parts]), torch.cat([lse[0] for _, lse in parts], 1)


VARLEN = {
    "positional": "o = flash_attn_varlen_func(q, k, v, cu_q, cu_k, 5, 7, 0.0, None, True, (2, 0))",
    "keyword": """
        o = flash_attn_varlen_func(q=q, k=k, v=v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=5,
                                   max_seqlen_k=7, dropout_p=0.0, causal=True, window_size=(2, 0))""",
    "lse": "o, lse, _ = flash_attn_varlen_func(q, k, v, cu_q, cu_k, 5, 7, causal=True, window_size=(2, 0), "
    "return_attn_probs=True)",
    "private": """
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward
        o, lse, *_ = _flash_attn_varlen_forward(q, k, v, cu_q, cu_k, 5, 7, 0.0, 0.25, True, 2, 0)""",
}


@pytest.mark.parametrize("name", VARLEN)
def test_packed_sequences(name: str) -> None:
    q = torch.randn(sum(LENGTHS_Q), HQ, D, requires_grad=True)
    k, v = (torch.randn(sum(LENGTHS_K), H, D, requires_grad=True) for _ in range(2))
    names = dict(q=q, k=k, v=v, cu_q=offsets(LENGTHS_Q), cu_k=offsets(LENGTHS_K))
    head = "from flash_attn import flash_attn_varlen_func\n"
    got = run(head + textwrap.dedent(VARLEN[name]), names)
    o, lse = packed_oracle(q, k, v, 2, 0)
    agree([got["o"], *([got["lse"]] if "lse" in got else [])], [o, *([lse] if "lse" in got else [])], [q, k, v])


PACKED = {
    "flash_attn_qkvpacked_func(torch.stack((q, k, v), 2), causal=True)": False,
    "flash_attn_kvpacked_func(q, kv, 0.0, None, True)": False,
    "flash_attn_varlen_qkvpacked_func(torch.stack((q, k, v), 2).flatten(0, 1), cu, 5, causal=True)": True,
    "flash_attn_varlen_kvpacked_func(q.flatten(0, 1), kv.flatten(0, 1), cu, cu, 5, 5, 0., None, True)": (True),
}


@pytest.mark.parametrize("call", PACKED)
def test_packed_arguments(call: str) -> None:
    q, k, v = qkv(5, 5, heads=HQ)
    got = run(f"from flash_attn import *\nfrom flash_attn import {call.split('(')[0]}\no = {call}",
              dict(q=q, k=k, v=v, kv=torch.stack((k, v), 2), cu=offsets((5, 5))))  # fmt: skip
    o = got["o"].unflatten(0, (2, 5)) if PACKED[call] else got["o"]
    agree([o], [attend(q, k, v, -1, 0)[0]], [q, k, v])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("flash_attn_func(q, k, v, 0.1)", UnsupportedOp, "flash_attn_func: dropout_p is 0.1"),
        ("flash_attn_func(q, k, v, softcap=30.0)", UnsupportedOp, "softcap is 30.0"),
        ("flash_attn_func(q, k, v, alibi_slopes=torch.ones(6))", UnsupportedOp, "alibi_slopes is [6]"),
        ("flash_attn_func(q, k, v, window_size=(2, 2))", UnsupportedOp, "window_size is (2, 2)"),
        ("flash_attn_func(q, k, v, window_size=(3, -1))", UnsupportedOp, "window_size is (3, -1)"),
        ("flash_attn_func(q, k[:, :, :0], v)", ValueError, "attention"),
        ("flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 5, 5, block_table=cu)", UnsupportedOp, "block_table is [2]"),
        ("flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 5, 5, dropout_p=0.5)", UnsupportedOp, "dropout_p is 0.5"),
        ("flash_attn_with_kvcache(q, k, v, cache_leftpad=cu)", UnsupportedOp, "cache_leftpad is [2]"),
        ("flash_attn_with_kvcache(q, k, v, k)", ValueError, "k and v"),
        ("flash_attn_with_kvcache(q, k, v, k, v)", ValueError, "cache_seqlens is None"),
        ("flash_attn_with_kvcache(q, k, v, k, v, cache_seqlens=1)", ValueError, "room for 5"),
        ("flash_attn_with_kvcache(q, k[:1], v[:1])", ValueError, "k_cache has 1 rows, expected B=2"),
        ("flash_attn_with_kvcache(q, k, v, block_table=cu, cache_batch_idx=cu)", ValueError, "both given"),
    ],
)  # fmt: skip
def test_wrong_call(call: str, error: type[Exception], words: str) -> None:
    q, k, v = (x.detach() for x in qkv(5, 5))
    names = dict(q=q, k=k, v=v, cu=torch.tensor([0, 5], dtype=torch.int32))
    source = f"from flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache\n{call}"
    with pytest.raises(error) as caught:
        run(source, names)
    assert words in str(caught.value)


@pytest.mark.parametrize(("version", "count"), [("2.8.3", 5), ("2.7.3", 5), ("2.6.3", 4)])
def test_unpad_and_pad(version: str, count: int) -> None:
    x, mask = torch.randn(3, 6, 2, 4, requires_grad=True), torch.ones(3, 6, dtype=torch.long)
    mask[0, :2] = mask[2, 3:] = 0
    source = """
        import flash_attn
        from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input
        packed, indices, cu, longest, *rest = unpad_input(x, mask)
        back = pad_input(packed, indices, 3, 6)
        again = index_first_axis(x.flatten(0, 1), indices)
        version = flash_attn.__version__
    """
    got = run(source, dict(x=x, mask=mask), flash_attn=version)
    assert got["version"] == version
    assert len(got["rest"]) == count - 4
    assert got["cu"].tolist() == [0, 4, 10, 13]
    assert got["cu"].dtype == torch.int32
    assert got["longest"] == 6
    agree([got["packed"], got["back"]], [x[mask.bool()], x * mask[..., None, None]], [x])
    assert torch.equal(got["again"], got["packed"])


def test_fla_padding() -> None:
    q, k = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    source = """
        from fla.layers.utils import get_unpad_data, index_first_axis, pad_input, unpad_input
        from fla.ops.utils.index import (prepare_chunk_indices, prepare_cu_seqlens_from_mask, prepare_lens_from_mask,
                                         prepare_position_ids, prepare_sequence_ids, prepare_token_indices)
        a, (b,), indices, (cu, cu_k), (longest, _) = unpad_input(q, (k,), mask, 5, keepdim=True)
        last, _, indices_1, (cu_1, _), (one, _) = unpad_input(q[:, -1:], (k,), mask, 1)
        back = pad_input(a[0], indices, 2, 5)
        lengths = prepare_lens_from_mask(mask)
        chunks = prepare_chunk_indices(cu, 2)
        tokens = prepare_token_indices(cu)
        same = prepare_cu_seqlens_from_mask(mask)
    """
    got = run(source, dict(q=q, k=k, mask=mask), fla="0.4")
    kept = mask.bool()
    agree([got["a"][0], got["b"][0], got["back"]], [q[kept], k[kept], q * mask[..., None]], [q, k])
    assert got["cu"].tolist() == got["cu_k"].tolist() == got["same"].tolist() == [0, 3, 8]
    assert (got["longest"], got["one"]) == (5, 1)
    assert torch.equal(got["last"], q[:, -1])
    assert got["cu_1"].tolist() == [0, 1, 2]
    assert got["lengths"].tolist() == [3, 5]
    assert got["chunks"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert got["tokens"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3], [1, 4]]
    with pytest.raises(ValueError, match="q_len is 3, expected 1 or T=5"):
        run("from fla.layers.utils import unpad_input\nunpad_input(q, (k,), mask, 3)", dict(q=q, k=k, mask=mask))


def test_rotary() -> None:
    x = torch.randn(2, 6, 3, 8, requires_grad=True)
    source = """
        from flash_attn.layers.rotary import RotaryEmbedding, apply_rotary_emb
        from flash_attn.ops.triton.rotary import apply_rotary
        rotary = RotaryEmbedding(8)
        both, kv = rotary(x, torch.stack((x, x), 2), seqlen_offset=3)
        qkv = rotary(torch.stack((x, x, x), 2), seqlen_offset=3)
        cos, sin = rotary.tables(x, 16)
        y = apply_rotary_emb(x, cos, sin, seqlen_offsets=3)
        back = apply_rotary(y, cos, sin, seqlen_offsets=3, conjugate=True)
        part = apply_rotary_emb(x, cos[:, :2], sin[:, :2])
        copy = x.detach().clone()
        assert apply_rotary_emb(copy, cos, sin, inplace=True) is copy
    """
    got = run(source, dict(x=x))
    place = torch.arange(6) + 3
    wanted = rotate(x, place)
    agree([got["both"], got["y"], got["back"]], [wanted, wanted, x], [x])
    torch.testing.assert_close(got["kv"], torch.stack((wanted, x), 2))
    torch.testing.assert_close(got["qkv"], torch.stack((wanted, wanted, x), 2))
    torch.testing.assert_close(got["copy"], rotate(x.detach(), torch.arange(6)))
    torch.testing.assert_close(got["part"][..., 4:], x[..., 4:])
    with pytest.raises(ValueError, match="position 8 given, cos has 4 rows"):
        run("from flash_attn.layers.rotary import apply_rotary_emb as f\nf(x, c, c, seqlen_offsets=3)",
            dict(x=x, c=torch.ones(4, 4)))  # fmt: skip
