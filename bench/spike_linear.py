"""Integer linear layers beside the released float computation: ``python -m bench.spike_linear``.

Released W8ASpike layers round their activations to spikes and their weights to codes at every call, and multiply both
in float32. Ours code the activations and multiply integers; the weights were coded once, into int8, or int16 where
codes lie beyond it as those of the released checkpoint do. All contenders of a row take turns in one process; ratios
are medians over rounds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import spikingbrain_hal
from bench.timing import Contender, ratio, take_turns
from spikingbrain_hal import ops

LAYERS = {"q and o": (3584, 3584), "k and v": (3584, 512), "gate and up": (3584, 18944)}
GOALS = {1: 10.0, 512: 3.0}
GROUP = 128
RELEASED = "released, float32"


def released(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """The released layer without its trip through spike trains, which changes nothing and costs a second."""
    v_threshold = (x.abs().mean(-1, keepdim=True) / 3).clamp(1e-5, 1e4)
    spiked = (x / v_threshold).round() * v_threshold
    groups = weight.unflatten(1, (-1, GROUP))
    return F.linear(spiked, (torch.round(groups / scales[..., None]) * scales[..., None]).flatten(1))


def contenders(width: int, outputs: int, tokens: int) -> dict[str, Contender]:
    """The ways to run one layer, checked against each other."""
    x, weight = torch.randn(tokens, width), torch.randn(outputs, width) / width**0.5
    scales = weight.unflatten(1, (-1, GROUP)).abs().amax(2) / 127
    codes = (weight.unflatten(1, (-1, GROUP)) / scales[..., None]).round().flatten(1).to(torch.int8)
    wide = codes.to(torch.int16)
    counts, v_threshold = ops.spike_encode(x)

    def ours(code: Tensor) -> Tensor:
        return ops.spike_linear(*ops.spike_encode(x), code, scales)

    torch.testing.assert_close(ours(codes), released(x, weight, scales), rtol=1e-3, atol=1e-3)
    assert torch.equal(ours(wide), ours(codes))
    return {
        "ours, int8": lambda: ours(codes),
        "ours, int16": lambda: ours(wide),
        "ours, int8, without the coder": lambda: ops.spike_linear(counts, v_threshold, codes, scales),
        RELEASED: lambda: released(x, weight, scales),
        "F.linear alone, float32": lambda: F.linear(x, weight),
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
            for name, (width, outputs) in LAYERS.items():
                title = f"{name}, {outputs} x {width}, {tokens} token{'s' if tokens > 1 else ''}"
                work = 2.0 * tokens * width * outputs
                report(title, contenders(width, outputs, tokens), goal, work, width * outputs)


if __name__ == "__main__":
    main()
