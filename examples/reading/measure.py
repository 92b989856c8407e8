"""What the example measures: reading speed, decoding speed, carried state, spikes, first token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal import ops
from spikingbrain_hal.nn import GatedLinearAttention, SpikeCoder, SpikeStatistics, SpikingBrain, State

from .transformer import Transformer


@dataclass
class Reading:
    """A document, read once.

    Args:
        states: The state after each length asked for.
        tokens_per_second: Prefill speed of the chunks before that length.
        seconds: Time from the first byte to that length.
        logits: What the model expects after the whole document.
    """

    states: dict[int, State]
    tokens_per_second: dict[int, float]
    seconds: dict[int, float]
    logits: Tensor


def read(model: SpikingBrain, document: Tensor, lengths: list[int], chunk: int, tell: Callable[[int], None]) -> Reading:
    """Prefills a document, [M] int64, chunk by chunk; calls ``tell(bytes read)`` after each.

    The lengths are multiples of chunk.
    """
    state, seconds, times = model.initial_state(1), 0.0, []
    found = Reading({}, {}, {}, torch.empty(0))
    for end in range(chunk, max(lengths) + 1, chunk):
        begin = time.perf_counter()
        found.logits, state = model.prefill(document[None, end - chunk : end], state, chunk)
        times.append(time.perf_counter() - begin)
        seconds += times[-1]
        if end in lengths:
            found.states[end] = state.clone()
            found.tokens_per_second[end] = chunk / median(times[-16:])
            found.seconds[end] = seconds
        tell(end)
    return found


def interleaved(actions: dict[int, Callable[[], object]], steps: int) -> dict[int, float]:
    """Median seconds of each action; every step runs them all, so a disturbance meets them all."""
    times: dict[int, list[float]] = {key: [] for key in actions}
    for _ in range(steps):
        for key, action in actions.items():
            begin = time.perf_counter()
            action()
            times[key].append(time.perf_counter() - begin)
    return {key: median(values) for key, values in times.items()}


@torch.no_grad()
def decode(model: SpikingBrain, states: dict[int, State], steps: int, rounds: int = 3) -> dict[str, Any]:
    """Decoding speed after each length, of the whole model and of its linear layers alone.

    A round's ratio is the speed at the longest length over that at the shortest; the best round's
    is given.
    """
    token = torch.zeros(1, 1, dtype=torch.int64)
    x = torch.randn(1, 1, model.config.hidden_size)
    linear = [i for i, b in enumerate(model.blocks) if isinstance(b.attention, GatedLinearAttention)]

    def whole(state: State) -> Callable[[], object]:
        return lambda: model(token, state)

    def linear_layers(state: State) -> Callable[[], object]:
        return lambda: [model.blocks[i].attention(x, state.blocks[i]) for i in linear]

    results: dict[str, Any] = {}
    for name, make in {"model": whole, "linear_layers": linear_layers}.items():
        actions = {length: make(state.clone()) for length, state in states.items()}
        interleaved(actions, 3)
        found = [interleaved(actions, steps) for _ in range(rounds)]
        results[name] = {
            "tokens_per_second": {n: 1 / median(r[n] for r in found) for n in states},
            "speed_at_longest_over_shortest": max(r[min(states)] / r[max(states)] for r in found),
        }
    return results


@torch.no_grad()
def spikes(model: SpikingBrain, text: Tensor) -> dict[str, Any]:
    """Spike counts of the real activations while the model reads a text, [M] int64."""
    counts: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda m, x: counts.append(ops.spike_encode(x[0], m.k)[0]))
        for layer in model.modules()
        if isinstance(layer, SpikeCoder)
    ]
    model(text[None])
    for hook in hooks:
        hook.remove()
    everything = torch.cat([c.flatten() for c in counts])
    share = {n: c / len(everything) for n, c in Counter(everything.tolist()).items() if abs(n) <= 12}
    by_layer = [SpikeStatistics.of(c).zero_counts for c in counts]
    return {**asdict(SpikeStatistics.of(everything)), "by_layer": by_layer, "histogram": dict(sorted(share.items()))}


def first_token(
    model: SpikingBrain,
    transformer: Transformer,
    document: Tensor,
    lengths: list[int],
    budget: float,
    tell: Callable[[int], None],
) -> dict[str, dict[int, float]]:
    """Seconds from an empty state to the first token, of both models.

    The Transformer's cost grows with the square of the length, so it stops before a run that would
    take longer than the budget, in seconds; what is left out is missing from the result.
    """
    times: dict[str, dict[int, float]] = {"spikingbrain": {}, "transformer": {}}
    model.prefill(document[None, : lengths[0]])
    transformer.prefill(document[None, : lengths[0]])
    for length in lengths:
        tokens = document[None, :length]
        times["spikingbrain"][length] = _fastest(lambda: model.prefill(tokens))  # noqa: B023
        last = max(times["transformer"].items(), default=(length, 0.0))
        if last[1] * (length / last[0]) ** 2 <= budget:
            times["transformer"][length] = _fastest(lambda: transformer.prefill(tokens))  # noqa: B023
        tell(length)
    return times


def _fastest(action: Callable[[], object]) -> float:
    """Seconds of the fastest run; short ones run again, because they are easily disturbed."""
    runs = [interleaved({0: action}, 1)[0]]
    while sum(runs) < 1 and len(runs) < 5:
        runs += [interleaved({0: action}, 1)[0]]
    return min(runs)
