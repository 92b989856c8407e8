"""The model beside which the time to the first token is measured: full attention in every layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikingbrain_hal.nn import SpikingBrainConfig, rotate
from spikingbrain_hal.nn.heads import GroupedHeads


class FullAttention(GroupedHeads):
    """Causal attention over all keys by torch's ``scaled_dot_product_attention``."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Maps x, [B, T, hidden_size], to the same shape; also gives the keys and values to keep."""
        q, k, v = self.project(x)
        q, k = (rotate(y, 0, self.config.rope_theta) for y in (q, k))
        group = self.config.query_heads // self.config.kv_heads
        kv = (y.transpose(1, 2).repeat_interleave(group, 1) for y in (k, v))
        o = F.scaled_dot_product_attention(q.transpose(1, 2), *kv, is_causal=True)
        return self.merge(o.transpose(1, 2)), [k, v]


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, without spikes."""

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.mlp_size
        self.attention_norm = nn.RMSNorm(size, eps=config.norm_eps)
        self.attention = FullAttention(config)
        self.mlp_norm = nn.RMSNorm(size, eps=config.norm_eps)
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`FullAttention.forward`."""
        y, kept = self.attention(self.attention_norm(x))
        x = x + y
        s = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(s)) * self.up_proj(s)), kept


class Transformer(nn.Module):
    """A Transformer with the sizes of a SpikingBrain model."""

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of the token after the last, [B, 1, vocab_size], and the cache it must keep."""
        x, cache = self.embedding(tokens), []
        for block in self.blocks:
            x, kept = block(x)
            cache += kept
        return self.lm_head(self.norm(x[:, -1:])), cache
