"""The public names of Int2Spike on the exact spike coder of :mod:`spikingbrain_hal.ops`.

Written from a description of that library's behaviour, and never wrong where it is: a tensor without negative entries
is legal, too few steps raise instead of wrapping, and a node remembers nothing from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops.spike_collapse import spike_collapse
from ..ops.spike_expand import spike_expand


class SpikeCountBaseLIFNode:
    """Turns integer counts into spike trains; ``node(x, x_zero, T)`` gives float32 [T, *x.shape].

    Subclasses name the coding, which :func:`spikingbrain_hal.ops.spike_expand` describes.
    """

    coding = "ternary"

    def __call__(self, x: Tensor, x_zero: Tensor | None = None, T: int | None = None) -> Tensor:
        """The trains of x.

        Args:
            x: Whole numbers of any dtype.
            x_zero: The number that stands for zero in the trains, float, broadcast to x. Where the coding has no sign
                and x has negative entries, it is moved in place so that all trains are of counts from 0 up.
            T: How many steps; the fewest that carry every number if None.

        Raises:
            ValueError: An entry is no whole number, or doesn't fit the coding or the steps.
        """
        counts = _counts(x)
        if x_zero is not None and self.coding in ("binary", "bitwise") and counts.numel() and int(counts.min()) < 0:
            x_zero -= counts.min()
            counts = counts - counts.min()
        return spike_expand(counts, self.coding, T, "msb").float()

    def decode(self, spikes: Tensor) -> Tensor:
        """The counts that trains stand for, float32."""
        return spike_collapse(spikes.to(torch.int8), self.coding, "msb").float()

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The potential after an input: ``v + x``."""
        return v + x

    def fire(self, v: Tensor) -> Tensor:
        """The spike that a potential sends: its sign where its size is at least one."""
        return v.sign() * (v.abs() >= 1)

    def reset(self, v: Tensor, spike: Tensor) -> Tensor:
        """The potential after a spike: ``v - spike``."""
        return v - spike

    def firing_rate(self, spikes: Tensor) -> Tensor:
        """The fraction of steps that send a spike, for each element."""
        return (spikes != 0).float().mean(0)

    def visualize_spike(self, spikes: Tensor, path: str | Path | None = None) -> Any:
        """A raster of trains, time to the right; saved if a path is given.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("visualize_spike needs matplotlib: pip install 'spikingbrain-hal[examples]'") from error
        figure = Figure(figsize=(6, 4))
        axes = figure.subplots()
        axes.imshow(spikes.flatten(1).T.float().numpy(force=True), aspect="auto", vmin=-1, vmax=1, cmap="coolwarm")
        axes.set(xlabel="step", ylabel="element")
        if path is not None:
            figure.savefig(path)
        return figure


class SpikeCountBinaryLIFNode(SpikeCountBaseLIFNode):
    """Counts of at least 0, one spike for each unit."""

    coding = "binary"


class SpikeCountTernaryLIFNode(SpikeCountBaseLIFNode):
    """Signed counts, one spike of 1 or -1 for each unit."""

    coding = "ternary"


class SpikeCountBitwiseNode(SpikeCountBaseLIFNode):
    """Counts in bits, the highest first.

    Args:
        is_bidirectional: Signed counts: each bit of the magnitude carries the sign.
        is_two_complement: Signed counts as two's complement; needs is_bidirectional too.

    Raises:
        ValueError: is_two_complement is given without is_bidirectional.
    """

    def __init__(self, is_bidirectional: bool = False, is_two_complement: bool = False) -> None:
        if is_two_complement and not is_bidirectional:
            raise ValueError("SpikeCountBitwiseNode: is_two_complement is True, expected is_bidirectional=True with it")
        self.is_bidirectional, self.is_two_complement = is_bidirectional, is_two_complement
        self.coding = "twos_complement" if is_two_complement else "bitwise_signed" if is_bidirectional else "bitwise"


def _counts(x: Tensor) -> Tensor:
    whole = x.detach().round()
    if not torch.equal(whole, x) or (x.numel() and float(whole.abs().max()) > 32767):
        raise ValueError("Int2Spike: x holds other values than whole numbers from -32767 to 32767")
    return whole.to(torch.int16)


def spike_quant(x: Tensor, lif_quantizer: SpikeCountBaseLIFNode, x_zero: Tensor | None = None) -> Tensor:
    """The spike trains of x, ``lif_quantizer(x, x_zero)``."""
    return lif_quantizer(x, x_zero)


def spike_dequant(spikes: Tensor, lif_quantizer: SpikeCountBaseLIFNode, x_zero: Tensor | None = None) -> Tensor:
    """The numbers that trains stand for, float32; less the zero point if one is given."""
    decoded = lif_quantizer.decode(spikes)
    return decoded if x_zero is None else decoded - x_zero


def spike_fake_quant(x: Tensor, lif_quantizer: SpikeCountBaseLIFNode, x_zero: Tensor | None = None) -> Tensor:
    """x by way of spikes, float32: exactly x, plus the zero point if one is given. Its gradient passes straight."""
    decoded = lif_quantizer.decode(lif_quantizer(x.detach(), x_zero))
    return decoded + (x - x.detach()).float()


def weight_to_bitwise(w: Tensor) -> Tensor:
    """Integer weights as bits of two's complement, the highest first: float32 [T, *w.shape]."""
    return _weight_bits(w)


def spike_matmul(
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    lif_quantizer: SpikeCountBaseLIFNode | None = None,
    w_zero: Tensor | None = None,
    weight_bitwise: bool = False,
) -> Tensor:
    """``x @ (w - w_zero)`` with x, and w if asked, sent as spikes.

    Args:
        x: Whole numbers, [..., M, K].
        w: Whole numbers, [..., K, N].
        x_zero: Where the zero of x's trains is kept; see :class:`SpikeCountBaseLIFNode`.
        lif_quantizer: Codes x; bitwise and signed if None.
        w_zero: The number that stands for zero in w.
        weight_bitwise: Send w as bits too.

    Returns:
        The product, float32; its gradient passes straight through both codings.
    """
    node = SpikeCountBitwiseNode(is_bidirectional=True) if lif_quantizer is None else lif_quantizer
    left = spike_fake_quant(x, node, x_zero)
    right = spike_fake_quant(w, _weight_bits) if weight_bitwise else w.float()
    return (left if x_zero is None else left - x_zero) @ (right if w_zero is None else right - w_zero)


_weight_bits = SpikeCountBitwiseNode(is_bidirectional=True, is_two_complement=True)

_NAMES: dict[str, object] = {
    **{
        item.__name__: item
        for item in (
            SpikeCountBaseLIFNode, SpikeCountBinaryLIFNode, SpikeCountTernaryLIFNode, SpikeCountBitwiseNode,
            spike_quant, spike_dequant, spike_fake_quant, spike_matmul, weight_to_bitwise,
        )
    },
    "quant": spike_quant,
    "dequant": spike_dequant,
    "fake_quant": spike_fake_quant,
}  # fmt: skip


def modules() -> dict[str, Callable[[], Mapping[str, object]]]:
    """What each module holds, by its full name; released code has them inside a package of its own too."""
    return {"Int2Spike": lambda: _NAMES, "Int2Spike.neuron": lambda: _NAMES}
