"""Integer linear layers beside the released float computation: ``python -m bench.spike_linear``.

Released W8ASpike layers round their activations to spikes and their weights to codes at every call, and multiply both
in float32. Ours code the activations once for all layers that read them and multiply integers; the weights were coded
once, into int8, or int16 where codes lie beyond it as those of the released checkpoint do. All contenders of a row take
turns in one process; ratios are medians over rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import spikingbrain_hal
from bench.timing import Contender, ratio, take_turns
from spikingbrain_hal import ops
from spikingbrain_hal.nn import encode_weight

WIDTH = 3584
READERS = {"q, k, v and gate": (3584, 512, 512, 512), "o": (3584,), "gate and up": (18944, 18944), "k alone": (512,)}
GOALS = {1: 10.0, 512: 3.0}
GROUP = 128
RELEASED = "released, float32"


def released(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """The released layer without its trip through spike trains, which changes nothing and costs a second."""
    v_threshold = (x.abs().mean(-1, keepdim=True) / 3).clamp(1e-5, 1e4)
    spiked = (x / v_threshold).round() * v_threshold
    groups = weight.unflatten(1, (-1, GROUP))
    return F.linear(spiked, (torch.round(groups / scales[..., None]) * scales[..., None]).flatten(1))


def contenders(outputs: Sequence[int], tokens: int) -> dict[str, Contender]:
    """The ways to run the layers that read one input, checked against each other."""
    x, weights = torch.randn(tokens, WIDTH), [torch.randn(n, WIDTH) / WIDTH**0.5 for n in outputs]
    scales = [w.unflatten(1, (-1, GROUP)).abs().amax(2) / 127 for w in weights]
    wide = [encode_weight(w, s) for w, s in zip(weights, scales, strict=True)]
    narrow = [codes.to(torch.int8) for codes in wide]
    counts, v_threshold = ops.spike_encode(x)

    def theirs() -> list[Tensor]:
        return [released(x, w, s) for w, s in zip(weights, scales, strict=True)]

    def multiplied(counts: Tensor, v_threshold: Tensor, codes: Sequence[Tensor]) -> list[Tensor]:
        return [ops.spike_linear(counts, v_threshold, n, s) for n, s in zip(codes, scales, strict=True)]

    def ours(codes: Sequence[Tensor]) -> list[Tensor]:
        return multiplied(*ops.spike_encode(x), codes)

    torch.testing.assert_close(ours(narrow), theirs(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours(wide), ours(narrow), rtol=0, atol=0)
    return {
        "ours, int8": lambda: ours(narrow),
        "ours, int16": lambda: ours(wide),
        "ours, int8, without the coder": lambda: multiplied(counts, v_threshold, narrow),
        RELEASED: theirs,
        "F.linear alone, float32": lambda: [F.linear(x, w) for w in weights],
    }


def report(title: str, run: dict[str, Contender], goal: float, work: float, codes: int) -> None:
    """Prints the times, the rates of arithmetic and of reading int8 codes, and the ratios."""
    seconds = take_turns(run)
    print(f"{title} (goal {goal:.0f}x)")
    for name, times in seconds.items():
        middle = sorted(times)[len(times) // 2]
        rates = f"{work / middle / 1e9:8.0f} GOP/s" + (f"{codes / middle / 1e9:8.1f} GB/s" if "int8" in name else "")
        print(f"    {name:32}{1e3 * middle:10.2f} ms {ratio(seconds, RELEASED, name):8.1f}x {rates}")


def main() -> None:
    torch.manual_seed(0)
    spikingbrain_hal.use_backend("cpu")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.no_grad():
        for tokens, goal in GOALS.items():
            for name, outputs in READERS.items():
                codes = WIDTH * sum(outputs)
                title = f"{name}, {' + '.join(map(str, outputs))} x {WIDTH}, {tokens} token{'s' if tokens > 1 else ''}"
                report(title, contenders(outputs, tokens), goal, 2.0 * tokens * codes, codes)


if __name__ == "__main__":
    main()
