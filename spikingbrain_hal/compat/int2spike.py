"""The public names of Int2Spike on the exact spike coder of :mod:`spikingbrain_hal.ops`.

Written from a description of that library's behaviour, and never wrong where it is: a tensor without negative entries
is legal without a zero point too, too few steps raise instead of wrapping, and no call changes what the next one gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.spike_coding.spike_collapse import spike_collapse
from ..ops.spike_coding.spike_expand import spike_expand

MOST = 32767  # int16


class SpikeCountBaseLIFNode(nn.Module):
    """Turns integer counts into spike trains; ``node(x, T)`` gives float32 [T, *x.shape].

    Subclasses name the coding, which :func:`spikingbrain_hal.ops.spike_expand` describes.
    """

    coding = "ternary"

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, int] | None = None  # counts and steps, for those who look at trains afterwards

    @property
    def signed(self) -> bool:
        """Whether counts below 0 have trains."""
        return self.coding not in ("binary", "bitwise")

    def forward(self, x: Tensor, T: int | None = None) -> Tensor:
        """The trains of x.

        Args:
            x: Whole numbers of any dtype.
            T: How many steps; the fewest that carry every number if None.

        Raises:
            TypeError: T is no number of steps; zero points go to :func:`spike_quant`.
            ValueError: An entry is no whole number, or doesn't fit the coding or the steps.
        """
        if T is not None and (not isinstance(T, int) or isinstance(T, bool)):
            raise TypeError(
                f"{type(self).__name__}: T is a {type(T).__name__}, expected a number of steps or None; a zero point "
                f"goes to spike_quant"
            )
        counts = _counts(x)
        trains = spike_expand(counts, self.coding, T, "msb")
        self._last = counts, trains.shape[0]
        return trains.float()

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

    def firing_rate(self) -> Tensor:
        """The fraction of steps in which each element sent a spike in the last call.

        Raises:
            RuntimeError: There was none.
        """
        return (self._trains("firing_rate") != 0).float().mean(0)

    def visualize_spike(self, filename: str | Path | None = None) -> Any:
        """A raster of the trains of the last call, time to the right; saved if a filename is given.

        Raises:
            ImportError: matplotlib is not installed.
            RuntimeError: There was no call.
        """
        trains = self._trains("visualize_spike")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("visualize_spike needs matplotlib: pip install 'spikingbrain-hal[examples]'") from error
        figure = Figure(figsize=(6, 4))
        axes = figure.subplots()
        axes.imshow(trains.flatten(1).T.float().numpy(force=True), aspect="auto", vmin=-1, vmax=1, cmap="coolwarm")
        axes.set(xlabel="step", ylabel="element")
        if filename is not None:
            figure.savefig(filename)
        return figure

    def _trains(self, asker: str) -> Tensor:
        if self._last is None:
            raise RuntimeError(f"{type(self).__name__}.{asker}: the node has not been called yet")
        return spike_expand(self._last[0], self.coding, self._last[1], "msb")


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
        super().__init__()
        self.is_bidirectional, self.is_two_complement = is_bidirectional, is_two_complement
        self.coding = "twos_complement" if is_two_complement else "bitwise_signed" if is_bidirectional else "bitwise"


def _counts(x: Tensor) -> Tensor:
    whole = x.detach().round()
    if not torch.equal(whole, x) or (x.numel() and float(whole.abs().max()) > MOST):
        raise ValueError(f"Int2Spike: x holds other values than whole numbers from {-MOST} to {MOST}")
    return whole.to(torch.int16)


def _check_node(node: object) -> None:
    if not isinstance(node, SpikeCountBaseLIFNode):
        raise TypeError(f"Int2Spike: lif_quantizer is a {type(node).__name__}, expected one of its nodes")


def _send(x: Tensor, node: SpikeCountBaseLIFNode, x_zero: Tensor | None) -> Tensor:
    """The trains of x, shifted as :func:`spike_quant` says, and the zero point after them."""
    _check_node(node)
    if x_zero is None:
        trains: Tensor = node(x)
        return trains
    counts = _counts(x).int()
    below = counts.numel() > 0 and int(counts.min()) < 0
    shift = counts.new_zeros(())
    if below and not node.signed:
        shift = -counts.min()
    elif node.signed and not below:
        shift = -((counts + 1) // 2)
    if x_zero.shape != x.shape and (node.signed or x_zero.numel() != 1):
        raise ValueError(f"Int2Spike: x_zero is {list(x_zero.shape)}, expected x's shape, {list(x.shape)}")
    trains = node(counts + shift)
    with torch.no_grad():
        x_zero += (shift + _sign_weight(trains, node)).to(x_zero.dtype)
    return trains


def _carried(spikes: Tensor, node: SpikeCountBaseLIFNode, x_zero: Tensor | None) -> Tensor:
    """What trains carry, float32; with a zero point, which has what the sign weighs, bits weigh positive only."""
    _check_node(node)
    decoded = node.decode(spikes)
    return decoded if x_zero is None else decoded + _sign_weight(spikes, node)


def _sign_weight(trains: Tensor, node: SpikeCountBaseLIFNode) -> Tensor:
    """By how much more trains stand for if the highest bit of two's complement weighs positive."""
    if node.coding != "twos_complement":
        return trains.new_zeros(())
    return (trains[0] != 0) * float(2 ** len(trains))


def spike_quant(x: Tensor, lif_quantizer: SpikeCountBaseLIFNode, x_zero: Tensor | None = None) -> Tensor:
    """The spike trains of x.

    Args:
        x: Whole numbers of any dtype.
        lif_quantizer: Codes x.
        x_zero: The number that stands for zero in the trains, of x's shape, or a single one for a coding without
            signs. What is added to x so that the trains suit the coding is added to it too, in place: without signs,
            as much as makes the smallest number 0; with signs, and none of them used, minus half of x, rounded up; and
            in two's complement what the highest bit weighs twice over where it is set. x is what the trains carry less
            what was added.

    Returns:
        The trains, float32 [T, *x.shape].

    Raises:
        TypeError: lif_quantizer is no node of Int2Spike.
        ValueError: An entry is no whole number, doesn't fit the coding, or x_zero has another shape; x_zero is as it
            was then.
    """
    return _send(x, lif_quantizer, x_zero)


def spike_dequant(spikes: Tensor, lif_quantizer: SpikeCountBaseLIFNode, x_zero: Tensor | None = None) -> Tensor:
    """The numbers that trains stand for, float32; less the zero point if one is given."""
    decoded = _carried(spikes, lif_quantizer, x_zero)
    return decoded if x_zero is None else decoded - x_zero


def spike_fake_quant(x: Tensor, lif_quantizer: SpikeCountBaseLIFNode, x_zero: Tensor | None = None) -> Tensor:
    """x by way of spikes, float32: exactly x, plus what :func:`spike_quant` adds. Its gradient passes straight."""
    carried = _carried(_send(x.detach(), lif_quantizer, x_zero), lif_quantizer, x_zero)
    return carried + (x - x.detach()).float()


def _weight_node() -> SpikeCountBitwiseNode:
    return SpikeCountBitwiseNode(is_bidirectional=True, is_two_complement=True)


def weight_to_bitwise(w: Tensor, w_zero: Tensor | None = None) -> Tensor:
    """Integer weights as bits of two's complement, the highest first: float32 [T, *w.shape].

    Args:
        w: Whole numbers.
        w_zero: Their zero point, as x_zero of :func:`spike_quant`.
    """
    return _send(w, _weight_node(), w_zero)


def spike_matmul(
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    lif_quantizer: SpikeCountBaseLIFNode | None = None,
    w_zero: Tensor | None = None,
    weight_bitwise: bool = False,
) -> Tensor:
    """The product of what the spikes of x and w carry: ``(x + x_zero) @ (w + w_zero)`` for zero points that begin at 0.

    Taking the zero points out of it is the caller's part.

    Args:
        x: Whole numbers, [..., M, K].
        w: Whole numbers, [..., K, N].
        x_zero: The zero point of x, changed in place as :func:`spike_quant` says.
        lif_quantizer: Codes x; bitwise and signed if None.
        w_zero: The zero point of w, changed in place if w is sent as bits.
        weight_bitwise: Send w as bits too.

    Returns:
        The product, float32; its gradient passes straight through both codings.
    """
    node = SpikeCountBitwiseNode(is_bidirectional=True) if lif_quantizer is None else lif_quantizer
    moved_x, moved_w = (None if zero is None else zero.clone() for zero in (x_zero, w_zero))
    left = spike_fake_quant(x, node, moved_x)
    right = spike_fake_quant(w, _weight_node(), moved_w) if weight_bitwise else w.float()
    y = left @ right
    with torch.no_grad():
        for zero, moved in ((x_zero, moved_x), (w_zero, moved_w)):
            if zero is not None and moved is not None:
                zero.copy_(moved)
    return y


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
