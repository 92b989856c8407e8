"""Client scripts, run as a user's file would be, and plain-PyTorch oracles for what they compute."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal import compat

PROFILES = ("0.1", "0.4", "current")


def run(source: str, names: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Executes a script under compat and returns its variables."""
    script = {"__name__": "client", "torch": torch, **(names or {})}
    with compat.installed(**options):
        exec(compile(textwrap.dedent(source), "client.py", "exec"), script)
    return script


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Of a fixed random combination of the outputs."""
    generator = torch.Generator().manual_seed(1)
    total = sum((o * torch.randn(o.shape, generator=generator).to(o.dtype)).sum() for o in outputs)
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, inputs, allow_unused=True))


def agree(got: list[Tensor], wanted: list[Tensor], inputs: list[Tensor], tolerance: float = 2e-5) -> None:
    """Values, shapes and gradients are equal."""
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)
    leaves = [x for x in inputs if x.requires_grad]
    if leaves:
        pairs = zip(gradients(got, leaves), gradients(wanted, leaves), strict=True)
        for n, (a, b) in enumerate(pairs):
            assert (a is None) == (b is None), f"gradient of input {n}"
            if a is not None:
                torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The recurrence, step by step; everything [B, T, H, D], the state [B, H, K, V]."""
    outputs = []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", scale * q[:, t], state))
    return torch.stack(outputs, 1), state


def attend(
    q: Tensor, k: Tensor, v: Tensor, left: int = -1, right: int = -1, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention with flash-attn's window, aligned at the bottom right; outputs and LSE [B, H, T]."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    place = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    key = torch.arange(k.shape[1])[None]
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if left >= 0:
        seen &= key >= place - left
    if right >= 0:
        seen &= key <= place + right
    scores = scores.masked_fill(~seen, -torch.inf)
    empty = ~seen.any(-1)
    weights = torch.softmax(scores.masked_fill(empty[:, None], 0), -1).masked_fill(empty[:, None], 0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v), torch.logsumexp(scores, -1)


def rotate(x: Tensor, place: Tensor, base: float = 10000.0, interleaved: bool = False) -> Tensor:
    """Rotary embedding by complex numbers; x [..., T, H, D], place [..., T]."""
    half = x.shape[-1] // 2
    angle = place[..., None, None].double() * base ** -(torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = x.double().unflatten(-1, (half, 2) if interleaved else (2, half))
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    y = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return (y if interleaved else y.transpose(-1, -2)).flatten(-2).to(x.dtype)
