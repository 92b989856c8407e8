"""The CPU kernels beside what PyTorch users run today: ``python -m bench.speed``.

All contenders of a row take turns in one process; the ratio is the median over rounds. SpikingJelly's row needs it
installed (``pip install --no-deps spikingjelly loguru tqdm scipy``) and says so otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

import spikingbrain_hal
from bench.timing import Contender, ratio, take_turns
from spikingbrain_hal import ops

Row = tuple[str, dict[str, Contender], str, float]


def chunked_bmm(q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk: int = 64) -> Tensor:
    """Gated linear attention in chunks of batched products, heads repeated: the usual way in plain PyTorch."""
    group = q.shape[2] // k.shape[2]
    k, v, g = (t.repeat_interleave(group, 2) for t in (k, v, g))
    q, k, v, g = (t.transpose(1, 2).unflatten(2, (-1, chunk)) for t in (q * q.shape[-1] ** -0.5, k, v, g))
    total = g.cumsum(3)
    q_in, k_out = q * total.exp(), k * (-total).exp()
    inside = (q_in @ k_out.transpose(-1, -2)).tril() @ v
    last = total[:, :, :, -1:]
    write = (k * (last - total).exp()).transpose(-1, -2) @ v
    state, states = torch.zeros_like(write[:, :, 0]), []
    for n in range(q.shape[2]):
        states.append(state)
        state = last[:, :, n].exp().transpose(-1, -2) * state + write[:, :, n]
    return (inside + q_in @ torch.stack(states, 2)).flatten(2, 3).transpose(1, 2)


def gla_rows() -> Iterator[Row]:
    torch.manual_seed(0)
    q = torch.randn(1, 4096, 28, 128)
    k, v = torch.randn(1, 4096, 4, 128), torch.randn(1, 4096, 4, 128)
    g = F.logsigmoid(torch.randn(1, 4096, 4, 128)) / 16
    mine, theirs = ops.gated_linear_attention(q, k, v, g)[0], chunked_bmm(q, k, v, g)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-2)
    run = {
        "ours": lambda: ops.gated_linear_attention(q, k, v, g),
        "torch chunked bmm, repeated heads": lambda: chunked_bmm(q, k, v, g),
    }
    yield "gated_linear_attention, 7B shape, T=4096, float32", run, "torch chunked bmm, repeated heads", 10


def attention_rows() -> Iterator[Row]:
    q, k, v = (torch.randn(1, 8192, 4, 128) for _ in range(3))
    heads_first = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    run = {
        "ours": lambda: ops.attention(q, k, v),
        "SDPA is_causal": lambda: F.scaled_dot_product_attention(*heads_first, is_causal=True),
    }
    yield "attention, full causal, T=8192, H=4, D=128, float32", run, "SDPA is_causal", 1
    distance = torch.arange(8192)[:, None] - torch.arange(8192)[None]
    mask = (distance >= 0) & (distance < 1024)
    run = {
        "ours": lambda: ops.attention(q, k, v, window=1024),
        "SDPA with a mask": lambda: F.scaled_dot_product_attention(*heads_first, attn_mask=mask),
    }
    yield "attention, window 1024, T=8192, H=4, D=128, float32", run, "SDPA with a mask", 8


def lif_rows() -> Iterator[Row]:
    if find_spec("spikingjelly") is None:
        print("lif_scan beside SpikingJelly: not run, SpikingJelly is not installed")
        return
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.Sigmoid(), step_mode="m")
    x = torch.randn(16, 2_000_000)

    def theirs() -> Tensor:
        functional.reset_net(node)
        return node(x)

    torch.testing.assert_close(ops.lif_scan(x)[0], theirs())
    copy = torch.empty_like(x)
    run = {"ours": lambda: ops.lif_scan(x), "SpikingJelly torch": theirs, "copy of x": lambda: copy.copy_(x)}
    yield "lif_scan forward, T=16, N=2M, float32", run, "SpikingJelly torch", 15


def main() -> None:
    spikingbrain_hal.use_backend("cpu")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        for rows in (gla_rows, attention_rows, lif_rows):
            for title, run, rival, goal in rows():
                seconds = take_turns(run)
                print(title)
                for name, times in seconds.items():
                    print(f"    {name:36}{1e3 * sorted(times)[len(times) // 2]:10.1f} ms")
                print(f"    {rival} takes {ratio(seconds, rival, 'ours'):.2f}x as long as ours (goal {goal}x)")


if __name__ == "__main__":
    main()
