"""The hybrid model of SpikingBrain-7B: linear and windowed attention in turn, spiking MLPs between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from .config import SpikingBrainConfig
from .gated_linear_attention import GatedLinearAttention, LinearState
from .ring_cache import RingCache
from .spiking import SpikingMLP
from .state import Advancing
from .windowed_attention import WindowedAttention


class HybridBlock(nn.Module):
    """One block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        config: Sizes of the model.
        index: Which block it is, from 0: even ones have linear attention, odd ones windowed.

    Source: SpikingBrain technical report, section 3.
    """

    def __init__(self, config: SpikingBrainConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = WindowedAttention(config) if index % 2 else GatedLinearAttention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SpikingMLP(config)

    def forward(self, x: Tensor, state: LinearState | RingCache) -> Tensor:
        """Maps x, [B, T, hidden_size], to the same shape, and advances the state."""
        x = x + self.attention(self.attention_norm(x), state)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


@dataclass
class State(Advancing):
    """What the model carries from token to token: one state for each block, of constant size.

    Args:
        blocks: The blocks' states in order.
        broken: A call that was to advance it ended in an error, so it cannot be read on from.
    """

    blocks: list[LinearState | RingCache]
    broken: bool = False

    @property
    def nbytes(self) -> int:
        """Size in bytes, the same at every context length."""
        return sum(state.nbytes for state in self.blocks)

    def clone(self) -> State:
        """An independent copy, to read on from the same place twice."""
        return replace(self, blocks=[state.clone() for state in self.blocks])


class SpikingBrain(nn.Module):
    """A language model of SpikingBrain-7B's shape.

    The same :meth:`forward` trains on whole sequences, prefills a document in chunks and decodes
    token by token; the results don't depend on how a sequence is cut.

    Args:
        config: Sizes of the model.

    Source: SpikingBrain technical report, section 3.
    """

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(HybridBlock(config, i) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        _initialise(self)

    def initial_state(self, batch: int) -> State:
        """The state before the first token."""
        blocks = (cast(HybridBlock, block) for block in self.blocks)
        return State([block.attention.initial_state(batch) for block in blocks])

    def forward(self, tokens: Tensor, state: State | None = None, last_only: bool = False) -> tuple[Tensor, State]:
        """Reads T tokens, one or many.

        Args:
            tokens: Token ids, [B, T], int64.
            state: Where to read on from, advanced in place; pass a clone to keep it. The beginning
                if absent.
            last_only: Give the logits of the last token only.

        Returns:
            The logits of each next token, [B, T, vocab_size], or [B, 1, vocab_size] with last_only;
            and the state. Gradients don't flow from one call into the one before it.

        Raises:
            RuntimeError: An earlier call with this state ended in an error half-way.
        """
        state = state or self.initial_state(tokens.shape[0])
        x = self.embedding(tokens)
        state.begin()
        for block, block_state in zip(self.blocks, state.blocks, strict=True):
            x = block(x, block_state)
        state.finish()
        return self.lm_head(self.norm(x[:, -1:] if last_only else x)), state

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: State | None = None, chunk: int = 1024) -> tuple[Tensor, State]:
        """Reads a document of any length in memory that doesn't grow with it.

        Args:
            tokens: Token ids, [B, T], T at least 1.
            state: Where to read on from; advanced in place. The beginning if absent.
            chunk: How many tokens are read at a time, at least 1.

        Returns:
            The logits of the token after the last, [B, 1, vocab_size], and the state.

        Raises:
            ValueError: There is no token, or chunk is below 1.
        """
        if not tokens.shape[1]:
            raise ValueError("SpikingBrain.prefill: tokens has no column, expected at least 1")
        if chunk < 1:
            raise ValueError(f"SpikingBrain.prefill: chunk is {chunk}, expected at least 1")
        state = state or self.initial_state(tokens.shape[0])
        for start in range(0, tokens.shape[1], chunk):
            logits, state = self(tokens[:, start : start + chunk], state, last_only=True)
        return logits, state

    @torch.no_grad()
    def generate(
        self, logits: Tensor, state: State, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[Tensor]:
        """Samples tokens without end from where :meth:`prefill` stopped.

        Args:
            logits: Logits of the next token, [B, 1, vocab_size].
            state: Where to read on from; advanced in place.
            temperature: Divides the logits; 0 takes the most likely token.
            seed: Makes the samples repeatable.

        Yields:
            The next token of each row, [B, 1].
        """
        source = torch.Generator(logits.device)
        if seed is not None:
            source.manual_seed(seed)
        while True:
            if temperature == 0:
                token = logits[:, -1].argmax(-1, keepdim=True)
            else:
                chances = (logits[:, -1].float() / temperature).softmax(-1)
                token = torch.multinomial(chances, 1, generator=source)
            yield token
            logits, state = self(token, state)


@torch.no_grad()
def _initialise(model: SpikingBrain) -> None:
    """Activations and logits of unit size, whatever the width and the depth."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()
    for module in model.modules():
        if isinstance(module, HybridBlock):  # their sum over all blocks has unit size too
            module.attention.o_proj.weight *= (2 * model.config.layers) ** -0.5
            module.mlp.down_proj.weight *= (2 * model.config.layers) ** -0.5
        if isinstance(module, GatedLinearAttention):  # memories two to a hundred tokens long
            cast(nn.Linear, module.g_proj[1]).bias.uniform_(-8, 2)
