"""Level 5: operators together, in the blocks of a model: whole sequences, chunks, single tokens and gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...calls import selection
from ...declare.registry import OPERATORS
from ...nn import HybridBlock, SpikingBrainConfig
from ..operators import properties_of
from ..run.target import Opened
from ..verdict.judge import Mismatch
from . import BackendContext, backend_check

CONFIG = SpikingBrainConfig(hidden_size=64, query_heads=4, kv_heads=2, head_dim=16, mlp_size=96, window=9)
BLOCKS = {"linear": 0, "windowed": 1}
ROWS, TOKENS, CHUNK = 2, 40, 13
TOLERANCE = 1e-4  # of a token's own size
GRADIENT_TOLERANCE = 1e-2  # one count beside a tie that falls the other way moves the gradients of all earlier tokens
FLIPPED = 0.05  # of the tokens: those with such a count


def _needed(block: str) -> set[str]:
    """The operators that work in a block."""
    return {op for op, spec in OPERATORS.items() if block in properties_of(spec).blocks}


def _parts(opened: Opened) -> tuple[str, ...]:
    return tuple(block for block in BLOCKS if _needed(block).issubset(opened.served))


def _absent(opened: Opened) -> str:
    missing = sorted(set().union(*map(_needed, BLOCKS)) - set(opened.served))
    return "" if _parts(opened) else f"no block has all its operators; missing are {', '.join(missing)}"


def _block(ctx: BackendContext) -> tuple[HybridBlock, Tensor]:
    """A block in float32 and what it reads, [B, T, hidden_size]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.seed)
        block, x = HybridBlock(CONFIG, BLOCKS[ctx.part]), torch.randn(ROWS, TOKENS, CONFIG.hidden_size)
    return block.to(ctx.target.device), x.to(ctx.target.device)


def _read(block: HybridBlock, x: Tensor, chunk: int = TOKENS) -> Tensor:
    state = block.attention.initial_state(ROWS)
    return torch.cat([block(part, state) for part in x.split(chunk, 1)], 1)


def _expect_close(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Tokens, [..., channels], are compared by the size of their error."""
    error = (found.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1).clamp_min(1e-12)
    wrong = int((~(error <= tolerance)).sum())
    if wrong > FLIPPED * error.numel():
        raise Mismatch(
            f"{what}: {wrong} of {error.numel()} tokens are off by more than {tolerance:g} of their size, "
            f"at most by {float(error.max()):.3g}"
        )


@backend_check("a block of a model computes what its reference does in float64", level=5, absent=_absent, parts=_parts)
def block_values(ctx: BackendContext) -> None:
    block, x = _block(ctx)
    with torch.no_grad():
        found = _read(block, x)
        with selection.use_backend("reference", ctx.target.device):
            expected = _read(copy.deepcopy(block).double(), x.double())
    _expect_close(found, expected, "outputs")


@backend_check(
    "a block reads a sequence in chunks and token by token as it does at once", level=5, absent=_absent, parts=_parts
)
def block_state(ctx: BackendContext) -> None:
    block, x = _block(ctx)
    with torch.no_grad():
        whole = _read(block, x)
        _expect_close(_read(block, x, CHUNK), whole, f"chunks of {CHUNK} tokens")
        _expect_close(_read(block, x, 1), whole, "single tokens")


@backend_check("gradients through a block are those of its reference in float64", level=5, absent=_absent, parts=_parts)
def block_gradients(ctx: BackendContext) -> None:
    block, x = _block(ctx)
    found = _gradient(block, x)
    with selection.use_backend("reference", ctx.target.device):
        expected = _gradient(copy.deepcopy(block).double(), x.double())
    _expect_close(found, expected, "gradients", GRADIENT_TOLERANCE)


def _gradient(block: HybridBlock, x: Tensor) -> Tensor:
    """Of half the sum of the squared outputs, by x."""
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(_read(block, x).square().sum() / 2, x)
    return gradient
