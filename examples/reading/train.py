"""Training for a given time, and how well a model predicts text it has not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from spikingbrain_hal.nn import SpikingBrain

from .text import Corpus


@dataclass
class Training:
    """What training did.

    Args:
        loss: Bits per byte at each step.
        seconds: Time at the end of each step since the first began.
        tokens: Bytes read in all.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0


def bits_per_byte(model: SpikingBrain, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte, in bits."""
    logits, _ = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


def train(
    model: SpikingBrain,
    corpus: Corpus,
    batch: int,
    context: int,
    learning_rate: float,
    seconds: float,
    max_steps: int | None,
    seed: int,
    tell: Callable[[float, float], None],
) -> Training:
    """Trains until the time or the steps are used up; calls ``tell(progress, loss)`` at each step.

    The learning rate rises for 5 % of the run and falls to a tenth along a cosine.
    """
    done, source = Training(), torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    begin, progress = time.perf_counter(), 0.0
    while progress < 1:
        rate = learning_rate * min((progress + 1e-3) / 0.05, 0.55 + 0.45 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = bits_per_byte(model, *corpus.batch(batch, context, source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done.loss.append(loss.item())
        done.seconds.append(time.perf_counter() - begin)
        done.tokens += batch * context
        progress = done.seconds[-1] / seconds
        if max_steps:
            progress = max(progress, len(done.loss) / max_steps)
        tell(progress, done.loss[-1])
    return done


@torch.no_grad()
def held_out_loss(model: SpikingBrain, text: Tensor, context: int, windows: int) -> float:
    """Bits per byte on evenly spaced windows of a text, [M] uint8."""
    starts = torch.linspace(0, len(text) - context - 1, windows).long()
    pieces = text[starts[:, None] + torch.arange(context + 1)].long()
    losses = [bits_per_byte(model, p[None, :-1], p[None, 1:]).item() for p in pieces]
    return sum(losses) / windows
