"""Scripts written against fla's linear attention, in every version's argument order and layout."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from client import PROFILES, agree, gla, run
from torch import Tensor

from spikingbrain_hal import compat
from spikingbrain_hal.errors import UnsupportedOp

B, T, H, K, V = 2, 9, 3, 8, 6

# Each computes o and, if it asks for it, s; inputs lie as the profile wants them.
HEAD_FIRST = {
    "chunk positional": "from fla.ops.gla import chunk_gla\no, s = chunk_gla(q, k, v, g, 0.3, s0, True)",
    "chunk keyword": """
        from fla.ops.gla import chunk_gla
        o, s = chunk_gla(q=q, k=k, v=v, g=g, scale=0.3, initial_state=s0, output_final_state=True)""",
    "as SpikingBrain 1.0": """
        from fla.ops.gla import chunk_gla, fused_chunk_gla, fused_recurrent_gla
        o, s = fused_recurrent_gla(q * 0.3 * q.shape[-1] ** 0.5, k, v, g, initial_state=s0, output_final_state=True)
        assert o.is_contiguous() and o.shape == v.shape""",
    "fused chunk positional": """
        from fla.ops.gla import fused_chunk_gla
        o, s = fused_chunk_gla(q, k, v, g, 0.3, s0, True, True)""",
    "fused chunk default scale": """
        import fla.ops.gla
        o, s = fla.ops.gla.fused_chunk_gla(q * 0.3 * q.shape[-1] ** 0.5, k, v, g, -1, s0, True)""",
    "recurrent positional": """
        from fla.ops.gla import fused_recurrent_gla
        o, s = fused_recurrent_gla(q, k, v, g, None, 0.3, s0, True, False, None, True)""",
    "explicitly time first": """
        from fla.ops import chunk_gla
        q, k, v, g = (x.transpose(1, 2) for x in (q, k, v, g))
        o, s = chunk_gla(q, k, v, g, 0.3, s0, True, None, False)
        o = o.transpose(1, 2)""",
    "two calls": """
        from fla.ops.gla import chunk_gla, fused_recurrent_gla
        a, s = chunk_gla(*(x[:, :, :5] for x in (q, k, v, g)), 0.3, s0, True)
        parts = [a]
        for t in range(5, 9):
            a, s = fused_recurrent_gla(*(x[:, :, t:t + 1] for x in (q, k, v, g)), scale=0.3,
                                       initial_state=s, output_final_state=True)
            parts.append(a)
        o = torch.cat(parts, 2)""",
}
TIME_FIRST = {
    "chunk positional": HEAD_FIRST["chunk positional"],
    "chunk keyword": HEAD_FIRST["chunk keyword"],
    "recurrent positional": """
        from fla.ops.gla import fused_recurrent_gla
        o, s = fused_recurrent_gla(q, k, v, g, None, 0.3, s0, True)""",
    "recurrent keyword": """
        from fla.ops.gla import fused_recurrent_gla
        o, s = fused_recurrent_gla(q=q, k=k, v=v, gk=g, scale=0.3, initial_state=s0, output_final_state=True)""",
    "two calls": HEAD_FIRST["two calls"].replace("x[:, :, ", "x[:, ").replace("cat(parts, 2)", "cat(parts, 1)"),
    "reversed": """
        from fla.ops.gla import fused_recurrent_gla
        q, k, v, g = (x.flip(1) for x in (q, k, v, g))
        o, s = fused_recurrent_gla(q, k, v, gk=g, scale=0.3, initial_state=s0, output_final_state=True, reverse=True)
        o = o.flip(1)""",
    "no gate": """
        from fla.ops.gla import fused_recurrent_gla
        o, _ = fused_recurrent_gla(q, k, v, scale=0.3, initial_state=s0)
        s = None""",
    "packed": """
        from fla.ops.gla import chunk_gla
        cu = torch.tensor([0, 9, 18], dtype=torch.int32)
        q, k, v, g = (x.flatten(0, 1)[None] for x in (q, k, v, g))
        o, s = chunk_gla(q, k, v, g, scale=0.3, initial_state=s0, output_final_state=True, cu_seqlens=cu)
        o = o.view(2, 9, *o.shape[2:])""",
    "packed reversed": """
        from fla.ops.gla import fused_recurrent_gla
        cu = torch.tensor([0, 9, 18])
        q, k, v, g = (x.flip(1).flatten(0, 1)[None] for x in (q, k, v, g))
        o, s = fused_recurrent_gla(q, k, v, g, scale=0.3, initial_state=s0, output_final_state=True, reverse=True,
                                   cu_seqlens=cu)
        o = o.view(2, 9, *o.shape[2:]).flip(1)""",
}
CURRENT = {
    "state_v_first positional": """
        from fla.ops.gla import chunk_gla
        o, s = chunk_gla(q, k, v, g, 0.3, s0.mT.contiguous(), True, True)
        s = s.mT""",
    "cu_seqlens positional": """
        from fla.ops.gla import chunk_gla
        cu = torch.tensor([0, 9, 18])
        q, k, v, g = (x.flatten(0, 1)[None] for x in (q, k, v, g))
        o, s = chunk_gla(q, k, v, g, 0.3, s0, True, False, cu, cu.cpu())
        o = o.view(2, 9, *o.shape[2:])""",
    "old name of state_v_first": """
        import warnings
        from fla.ops.gla import fused_recurrent_gla
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            o, s = fused_recurrent_gla(q, k, v, g, scale=0.3, initial_state=s0.mT, output_final_state=True,
                                       transpose_state_layout=True)
        assert [w.category for w in caught] == [DeprecationWarning]
        s = s.mT""",
}
OLD_POSITION = {
    "cu_seqlens positional": """
        from fla.ops.gla import chunk_gla
        cu = torch.tensor([0, 9, 18])
        q, k, v, g = (x.flatten(0, 1)[None] for x in (q, k, v, g))
        o, s = chunk_gla(q, k, v, g, 0.3, s0, True, cu)
        o = o.view(2, 9, *o.shape[2:])""",
    "fused chunk": HEAD_FIRST["fused chunk positional"].replace("True, True", "True, False"),
}
CLIENTS = [
    (profile, name, source)
    for profile, sources in (
        ("0.1", HEAD_FIRST),
        ("0.4", TIME_FIRST | OLD_POSITION),
        ("current", TIME_FIRST | CURRENT),
    )
    for name, source in sources.items()
]


def inputs() -> dict[str, Tensor]:
    shapes = dict(q=(B, T, H, K), k=(B, T, H, K), v=(B, T, H, V), g=(B, T, H, K), s0=(B, H, K, V))
    found = {name: torch.randn(shape) for name, shape in shapes.items()}
    found["g"] = torch.nn.functional.logsigmoid(found["g"])
    return {name: x.requires_grad_() for name, x in found.items()}


@pytest.mark.parametrize(("profile", "name", "source"), CLIENTS, ids=lambda x: x if len(x) < 40 else "")
@pytest.mark.filterwarnings("error::spikingbrain_hal.compat.LayoutWarning")
def test_client(profile: str, name: str, source: str) -> None:
    a = inputs()
    wanted = gla(a["q"], a["k"], a["v"], a["g"] * (name != "no gate"), a["s0"], 0.3)
    swap = profile == "0.1"
    given = {n: x.transpose(1, 2) if swap and n != "s0" else x for n, x in a.items()}
    got = run(source, given, fla=profile)
    o = got["o"].transpose(1, 2) if swap else got["o"]
    if got["s"] is None:
        agree([o], [wanted[0]], [a[n] for n in "qkv"])
    else:
        assert got["s"].dtype == torch.float32
        agree([o, got["s"]], list(wanted), list(a.values()))


LINEAR = {
    "chunk": """
        from fla.ops.linear_attn import chunk_linear_attn
        o, s = chunk_linear_attn(q, k, v, None, None, True, normalize={n})""",
    "fused chunk": """
        from fla.ops.linear_attn import fused_chunk_linear_attn
        o, s = fused_chunk_linear_attn(q=q, k=k, v=v, output_final_state=True, normalize={n})""",
    "recurrent": """
        from fla.ops.linear_attn import fused_recurrent_linear_attn
        o, s = fused_recurrent_linear_attn(q, k, v, normalize={n}, output_final_state=True)""",
}


def linear_oracle(q: Tensor, k: Tensor, v: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    o, s = gla(q, k, v, torch.zeros_like(k), q.new_zeros(B, H, K, V), K**-0.5)
    norm = K**-0.5 * (q * k.cumsum(1)).sum(-1, keepdim=True) + 1e-10
    return (o / norm if normalize else o), s


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_client(profile: str, normalize: bool, name: str) -> None:
    q, k, v = (torch.rand(B, T, H, D).add_(0.1).requires_grad_() for D in (K, K, V))
    wanted_o, wanted_s = linear_oracle(q, k, v, normalize)
    swap = profile == "0.1"
    given = {n: x.transpose(1, 2) if swap else x for n, x in zip("qkv", (q, k, v), strict=True)}
    got = run(LINEAR[name].replace("{n}", str(normalize)), given, fla=profile)
    o, s = got["o"].transpose(1, 2) if swap else got["o"], got["s"]
    if profile == "current" and normalize:
        s, sums = s
        torch.testing.assert_close(sums, k.sum(1, keepdim=True))
    agree([o, s], [wanted_o, wanted_s], [q, k, v])


def test_normalized_state_continues_where_it_stopped() -> None:
    q, k, v = (torch.rand(1, 18, H, D) for D in (K, K, V))
    cu = torch.tensor([0, 5, 5, 12])
    source = """
        from fla.ops.linear_attn import chunk_linear_attn, fused_recurrent_linear_attn
        whole, (s, z) = chunk_linear_attn(q[:, :12], k[:, :12], v[:, :12], output_final_state=True)
        a, state = chunk_linear_attn(q[:, :7], k[:, :7], v[:, :7], output_final_state=True)
        b, (s2, z2) = chunk_linear_attn(q[:, 7:12], k[:, 7:12], v[:, 7:12], None, state, True)
        packed, (sp, zp) = chunk_linear_attn(q, k, v, output_final_state=True, cu_seqlens=cu)
        first, _ = chunk_linear_attn(q[:, :5], k[:, :5], v[:, :5])
        second, (s3, z3) = chunk_linear_attn(q[:, 5:12], k[:, 5:12], v[:, 5:12], output_final_state=True)
        back, (s4, z4) = fused_recurrent_linear_attn(q.flip(1), k.flip(1), v.flip(1), normalize=True, reverse=True,
                                                     output_final_state=True)
        ahead, (s5, z5) = fused_recurrent_linear_attn(q, k, v, normalize=True, output_final_state=True)
    """
    x = run(source, dict(q=q, k=k, v=v, cu=cu))
    pairs = [
        (torch.cat((x["a"], x["b"]), 1), x["whole"]),
        (x["s2"], x["s"]),
        (x["z2"], x["z"]),
        (x["packed"][:, :12], torch.cat((x["first"], x["second"]), 1)),
        (x["packed"][:, 12:], torch.zeros(1, 6, H, V)),
        (x["sp"][2:], x["s3"]),
        (x["zp"][2:], x["z3"]),
        (x["zp"][1], torch.zeros(1, H, K)),
        (x["back"].flip(1), x["ahead"]),
        (x["s4"], x["s5"]),
        (x["z4"], x["z5"]),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_float32_gate(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 20, 2, 16).to(dtype) for _ in range(3))
    g = torch.nn.functional.logsigmoid(torch.randn(1, 20, 2, 16))
    got = run("from fla.ops.gla import chunk_gla\no, s = chunk_gla(q, k, v, g, output_final_state=True)",
              dict(q=q, k=k, v=v, g=g))  # fmt: skip
    o, s = gla(*(x.double() for x in (q, k, v, g)), torch.zeros(1, 2, 16, 16).double(), 0.25)
    assert got["o"].dtype == dtype
    torch.testing.assert_close(got["o"].double(), o, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(got["s"].double(), s, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("profile", "source", "error", "words"),
    [
        ("0.4", "chunk_gla(q, k, v, g, head_first=True)", TypeError, "chunk_gla (fla 0.4): no argument 'head_first'"),
        ("current", "chunk_gla(q, k, v)", TypeError, "g not given"),
        ("current", "chunk_gla(q, k, v, g, g=g)", TypeError, "g is given twice"),
        ("0.1", "chunk_gla(*[q] * 10)", TypeError, "10 positional arguments given, at most 9"),
        ("0.1", "chunk_gla(q, k, v, g, cu_seqlens=torch.tensor([0, 9]))", ValueError, "head_first=False"),
        ("current", "fused_recurrent_gla(q, k, v, g, gv=v)", UnsupportedOp, "fused_recurrent_gla: gv is"),
        ("current", "fused_recurrent_gla(q, k, v, g, state_v_first=True, transpose_state_layout=True)", ValueError,
         "both given"),
        ("current", "fused_recurrent_gla(q, k, v, g, cu_seqlens=torch.tensor([0, 5]), reverse=True)", ValueError,
         "ends at 5"),
        ("0.4", "chunk_gla(q, k, v, g, cu_seqlens=torch.tensor([0, 5]))", ValueError, "B is 2, expected 1"),
        ("0.4", "chunk_gla(q, k, v, g, initial_state=s0[:1])", ValueError, "initial_state"),
    ],
)  # fmt: skip
def test_wrong_call(profile: str, source: str, error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {n: x.detach() for n, x in inputs().items()}
    with pytest.raises(error) as caught:
        run(f"from fla.ops.gla import chunk_gla, fused_recurrent_gla\n{source}", given, fla=profile)
    assert words in str(caught.value)


def test_gate_called_g_in_the_recurrent_function() -> None:
    """As the released 7B-VL does; no version of fla takes it."""
    given: dict[str, Any] = {n: x.detach() for n, x in inputs().items()}
    source = """
        from fla.ops.gla import fused_recurrent_gla
        o, s = fused_recurrent_gla(q=q, k=k, v=v, g=g, initial_state=s0, output_final_state=True)"""
    with pytest.warns(UserWarning, match="g is read as gk"):
        got = run(source, given, fla="current")
    wanted = gla(given["q"], given["k"], given["v"], given["g"], given["s0"], K**-0.5)
    agree([got["o"], got["s"]], list(wanted), [])
    with pytest.raises(TypeError, match="no argument 'g'; its gate is called 'gk'"):
        run(source, given, fla="current", strict=True)


@pytest.mark.parametrize("name", ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"])
@pytest.mark.parametrize("profile", PROFILES)
def test_delta_rule_can_be_imported_only(name: str, profile: str) -> None:
    with pytest.raises(UnsupportedOp, match=f"fla.ops.gated_delta_rule.{name}: spikingbrain_hal has no such operator"):
        run(f"from fla.ops.gated_delta_rule import {name} as f\nf(1, 2, 3, 4, 5)", fla=profile)


@pytest.mark.parametrize(
    "line",
    [
        "from fla.ops.sse import softmax_and_mask, prepare_sample_relpos_global_index_flat as f",
        "from moba import moba_attn_varlen as f",
        "from fla.ops.moba import parallel_moba as f",
        "from flash_attn.flash_attn_interface import _flash_attn_varlen_backward as f",
    ],
)
def test_names_without_operator(line: str) -> None:
    with pytest.raises(UnsupportedOp):
        run(f"{line}\nf()")


def test_signatures_show_the_version() -> None:
    for profile, last in (("0.1", "head_first"), ("0.4", "cu_seqlens"), ("current", "transpose_state_layout")):
        with compat.installed(fla=profile):
            from fla.ops.gla import chunk_gla
        assert list(inspect.signature(chunk_gla).parameters)[-1] == last


def test_compiles_in_one_graph() -> None:
    with compat.installed(fla="0.1"):
        from fla.ops.gla import chunk_gla
    q = torch.rand(1, 2, 6, 8)

    def f(q: Tensor) -> Any:
        return chunk_gla(q, q, q, -q, output_final_state=True)

    got = torch.compile(f, backend="aot_eager", fullgraph=True)(q)
    for a, b in zip(got, f(q), strict=True):
        torch.testing.assert_close(a, b)
