"""Scripts that decode over a cache of keys and values by flash-attn, contiguous or in pages."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import torch
from client import attend, rotate, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HQ, H, D = 6, 2, 16

CACHES = {
    "full cache": "o = flash_attn_with_kvcache(q, k_cache, v_cache, causal=True)",
    "one length": "o = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=6, causal=True)",
    "lengths": """
        o = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=lengths, causal=True, window_size=(3, 0))""",
    "append": "o = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths, causal=True)",
    "append, positional": """
        o, lse = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, None, None, lengths, None, None, None, 0.25, True,
                                         return_softmax_lse=True)""",
    "chosen rows": """
        o = flash_attn_with_kvcache(q, big_k, big_v, k, v, cache_seqlens=lengths, cache_batch_idx=rows, causal=True)
        k_cache, v_cache = big_k[rows], big_v[rows]""",
    "pages": """
        o = flash_attn_with_kvcache(q, pages_k, pages_v, k, v, cache_seqlens=lengths, block_table=table, causal=True)
        k_cache, v_cache = (p[table.long()].flatten(1, 2) for p in (pages_k, pages_v))""",
}


def cache_names() -> dict[str, Any]:
    q, k, v = (torch.randn(2, 2, n, D) for n in (HQ, H, H))
    k_cache, v_cache = (torch.randn(2, 12, H, D) for _ in range(2))
    rows, table = torch.tensor([3, 1]), torch.tensor([[5, 0, 2], [1, 4, 3]], dtype=torch.int32)
    names = dict(q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, lengths=torch.tensor([5, 9], dtype=torch.int32),
                 rows=rows, table=table)  # fmt: skip
    for letter, cache in (("k", k_cache), ("v", v_cache)):
        big, pages = torch.randn(4, 12, H, D), torch.randn(6, 4, H, D)
        big[rows] = cache
        pages[table.long()] = cache.unflatten(1, (3, 4))
        names |= {f"big_{letter}": big, f"pages_{letter}": pages}
    return names


@pytest.mark.parametrize("name", CACHES)
def test_cache(name: str) -> None:
    names = cache_names()
    before = {n: x.clone() for n, x in names.items()}
    got = run("from flash_attn import flash_attn_with_kvcache\n" + textwrap.dedent(CACHES[name]), names)
    appends = name not in ("full cache", "one length", "lengths")
    lengths = {"full cache": [12, 12], "one length": [6, 6]}.get(name, [5, 9])
    keys, values = before["k_cache"], before["v_cache"]
    for b, n in enumerate(lengths):
        if appends:
            keys[b, n : n + 2], values[b, n : n + 2] = before["k"][b], before["v"][b]
        end = n + 2 * appends
        left = 3 if name == "lengths" else -1
        o, lse = attend(before["q"][b : b + 1], keys[b : b + 1, :end], values[b : b + 1, :end], left, 0)
        torch.testing.assert_close(got["o"][b : b + 1], o, rtol=1e-5, atol=1e-5)
        if "lse" in got:
            torch.testing.assert_close(got["lse"][b : b + 1], lse, rtol=1e-5, atol=1e-5)
    assert torch.equal(got["k_cache"], keys)
    assert torch.equal(got["v_cache"], values)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_cache_with_rotary(causal: bool, interleaved: bool) -> None:
    names = cache_names()
    angle = torch.outer(torch.arange(20).double(), 10000.0 ** -(torch.arange(D // 2) / (D // 2)))
    names |= dict(cos=angle.cos().float(), sin=angle.sin().float(), causal=causal, interleaved=interleaved)
    source = """
        from flash_attn import flash_attn_with_kvcache
        o = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cos, sin, lengths, causal=causal,
                                    rotary_interleaved=interleaved)
    """
    before = {n: x.clone() if isinstance(x, Tensor) else x for n, x in names.items()}
    got = run(source, names)
    for b, n in enumerate((5, 9)):
        place = torch.tensor([n, n + 1])
        q = rotate(before["q"][b], place if causal else torch.tensor([n, n]), interleaved=interleaved)
        keys = before["k_cache"][b].clone()
        keys[n : n + 2] = rotate(before["k"][b], place, interleaved=interleaved)
        values = before["v_cache"][b].clone()
        values[n : n + 2] = before["v"][b]
        o, _ = attend(q[None], keys[None, : n + 2], values[None, : n + 2], -1, 0 if causal else -1)
        torch.testing.assert_close(got["o"][b : b + 1], o, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got["k_cache"][b], keys, rtol=1e-5, atol=1e-5)


CALL = "from flash_attn import flash_attn_with_kvcache\no = flash_attn_with_kvcache(q, "
PAGES = CALL + "pages_k, pages_v, k, v, cache_seqlens=lengths, block_table=table, causal=True)"


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in () if func._schema.is_mutable else result if isinstance(result, tuple) else (result,):
            self.elements = max(self.elements, x.numel() if isinstance(x, Tensor) else 0)
        return result


@pytest.mark.parametrize("rubbish", [-1, 6, 2**31 - 1])
def test_entries_that_no_length_reaches_are_not_read(rubbish: int) -> None:
    """They are whatever the allocator left there; a table is as wide as the longest text that may come."""
    names = cache_names()
    wanted = run(PAGES, {n: x.clone() for n, x in names.items()})["o"]
    wide = torch.full((2, 1000), rubbish, dtype=torch.int32)
    wide[:, :3] = names["table"]
    wide[0, 2] = rubbish  # the first row ends on its second page
    with Largest() as largest:
        got = run(PAGES, names | dict(table=wide))["o"]
    assert torch.equal(got, wanted)
    assert largest.elements <= 2 * 12 * H * D
    one = CALL + "pages_k, pages_v, cache_seqlens=4, block_table=table)"
    with Largest() as largest:
        run(one, names | dict(table=wide))
    assert largest.elements <= 6 * 4 * H * D


def test_rows_are_read_as_far_as_the_longest_reaches() -> None:
    names = cache_names() | {f"big_{letter}": torch.randn(4, 1000, H, D) for letter in "kv"}
    with Largest() as largest:
        run(CALL + "big_k, big_v, k, v, cache_seqlens=lengths, cache_batch_idx=rows, causal=True)", names)
    assert largest.elements <= 4 * 11 * H * D


WRONG = {
    "pages_k, pages_v, k, v, cache_seqlens=lengths, block_table=table - 1)": "block_table holds -1, expected numbers",
    "pages_k, pages_v, k, v, cache_seqlens=lengths, block_table=table + 1)": "block_table holds 6, .* pages, 0 to 5",
    "pages_k, pages_v, cache_seqlens=13, block_table=table)": "13 keys to hold, the cache has room for 12",
    "pages_k, pages_v, cache_seqlens=lengths, block_table=table[:1])": r"block_table is \[1, 3\], .* of B=2",
    "k_cache, v_cache, k, v, cache_seqlens=lengths - 6)": "cache_seqlens is -1, expected at least 0",
    "k_cache, v_cache, k, v, cache_seqlens=lengths[:1])": r"cache_seqlens is \[1\], expected a number or \[B=2\]",
    "k_cache, v_cache, k, v[:, :1], cache_seqlens=lengths)": r"v is \[2, 1, 2, 16\], expected \[2, 2, 2, 16\]",
    "k_cache, v_cache, k[..., :8], v, cache_seqlens=lengths)": r"k is \[2, 2, 2, 8\]",
    "k_cache, v_cache[:1], k, v, cache_seqlens=lengths)": r"v_cache is \[1, 12, 2, 16\]",
    "k_cache[..., :8], v_cache, k, v, cache_seqlens=lengths)": "q is .* and k_cache",
    "big_k, big_v, k, v, cache_seqlens=lengths, cache_batch_idx=rows + 1)": "cache_batch_idx holds 4, .* rows, 0 to 3",
    "big_k, big_v, k, v, cache_seqlens=lengths, cache_batch_idx=rows[:1])": "cache_batch_idx is",
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_call_writes_nothing(call: str) -> None:
    names = cache_names()
    before = {n: x.clone() for n, x in names.items()}
    with pytest.raises(ValueError, match=f"flash_attn_with_kvcache: .*{WRONG[call]}"):
        run(CALL + call, names)
    assert all(torch.equal(names[n], before[n]) for n in names)
