"""Spiking neurons under their familiar names: each is one setting of :func:`lif_scan`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.neurons.lif_scan import lif_scan


class Neuron(nn.Module):
    """A layer of neurons that reads all time steps at once and keeps no state between calls.

    Args:
        **scan: Arguments of :func:`lif_scan` beside x and v0.
    """

    def __init__(self, **scan: Any) -> None:
        super().__init__()
        self.scan = scan

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the neurons over their inputs.

        Args:
            x: Input currents, [T, ...].
            v: Membrane potentials before the first step, [...]; at rest if absent.

        Returns:
            The spikes, [T, ...], dtype of x; and the potentials after the last step, [...].
        """
        spikes, v_final = lif_scan(x, v, **self.scan)
        return spikes, v_final

    def extra_repr(self) -> str:
        """The parameters in the printed model."""
        return ", ".join(f"{name}={value!r}" for name, value in self.scan.items())


def _reset(v_reset: float | None) -> dict[str, Any]:
    """Hard to v_reset, which is also the rest potential; by subtraction if None."""
    if v_reset is None:
        return {"reset": "soft"}
    return {"reset": "hard", "v_reset": v_reset, "v_rest": v_reset}


class IF(Neuron):
    """Integrate and fire: ``h = v + x``, a spike where ``h >= v_threshold``.

    Args:
        v_threshold: Potential at which a neuron fires.
        v_reset: Potential after a spike; None subtracts v_threshold instead.
        **scan: Further arguments of :func:`lif_scan`: surrogate, alpha, detach_reset ...

    Source: the neuron of the same name in SpikingJelly (``IFNode``).
    """

    def __init__(self, v_threshold: float = 1.0, v_reset: float | None = 0.0, **scan: Any) -> None:
        reset = _reset(v_reset)
        super().__init__(decay=1.0, input_gain=1.0, v_threshold=v_threshold, **reset, **scan)


class LIF(Neuron):
    """Leaky integrate and fire: ``h = v + (x - (v - v_rest)) / tau``.

    A neuron fires where ``h >= v_threshold``. The rest potential is v_reset, or 0 with a soft reset.

    Args:
        tau: Membrane time constant in time steps, at least 1.
        decay_input: Divide the input by tau too.
        v_threshold: Potential at which a neuron fires.
        v_reset: Potential after a spike; None subtracts v_threshold instead.
        **scan: Further arguments of :func:`lif_scan`: surrogate, alpha, detach_reset ...

    Raises:
        ValueError: tau is below 1.

    Source: the neuron of the same name in SpikingJelly (``LIFNode``).
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        **scan: Any,
    ) -> None:
        if tau < 1:
            raise ValueError(f"tau is {tau}, expected at least 1")
        super().__init__(
            decay=1 - 1 / tau,
            input_gain=1 / tau if decay_input else 1.0,
            v_threshold=v_threshold,
            **_reset(v_reset),
            **scan,
        )


class ParametricLIF(Neuron):
    """LIF whose time constant is learnt: ``1 / tau = sigmoid(w)``, one w for the layer.

    Args:
        init_tau: The time constant to begin with, in time steps, above 1.
        decay_input: Divide the input by tau too.
        v_threshold: Potential at which a neuron fires.
        v_reset: Potential after a spike; None subtracts v_threshold instead.
        **scan: Further arguments of :func:`lif_scan`: surrogate, alpha, detach_reset ...

    Raises:
        ValueError: init_tau is not above 1.

    Source: Fang et al. 2021, arXiv:2007.05785, eq. 9.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        **scan: Any,
    ) -> None:
        if init_tau <= 1:
            raise ValueError(f"init_tau is {init_tau}, expected above 1")
        super().__init__(input_gain=1.0, v_threshold=v_threshold, **_reset(v_reset), **scan)
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1)))

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`Neuron.forward`, with the present time constant."""
        rate = self.w.sigmoid()
        x = x * rate.to(x.dtype) if self.decay_input else x
        spikes, v_final = lif_scan(x, v, decay=1 - rate, **self.scan)
        return spikes, v_final


class Leaky(Neuron):
    """Leaky neuron that is reset one step after its spike: ``h = beta * v + x - reset``.

    A neuron fires where ``h > v_threshold``. The potential it returns is the one before the reset;
    the reset carries no gradient.

    Args:
        beta: Decay of the potential at each step, in [0, 1]; a number, or a tensor that broadcasts to the neurons.
        v_threshold: Potential above which a neuron fires, and what ``"subtract"`` takes away; a number or a tensor.
        reset: ``"subtract"``, ``"zero"`` or ``"none"``.
        learn_beta: Make beta a parameter; what it is learnt to is clamped to [0, 1].
        learn_threshold: Make v_threshold a parameter.
        **scan: Further arguments of :func:`lif_scan`: surrogate, alpha ...

    Raises:
        ValueError: beta is outside [0, 1], or reset is none of the three.

    Source: the neuron of the same name in snnTorch.
    """

    beta: float | Tensor
    v_threshold: float | Tensor

    def __init__(
        self,
        beta: float | Tensor,
        v_threshold: float | Tensor = 1.0,
        reset: str = "subtract",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        **scan: Any,
    ) -> None:
        kinds = {"subtract": "soft", "zero": "hard", "none": "none"}
        if not torch.as_tensor((beta >= 0) & (beta <= 1)).all():
            raise ValueError(f"beta is {beta}, expected a value in [0, 1]")
        if reset not in kinds:
            raise ValueError(f"reset is {reset!r}, expected one of {', '.join(map(repr, kinds))}")
        super().__init__(
            input_gain=1.0,
            reset=kinds[reset],
            reset_next_step=True,
            detach_reset=True,
            strict=True,
            **scan,
        )
        self._own("beta", beta, learn_beta)
        self._own("v_threshold", v_threshold, learn_threshold)

    def _own(self, name: str, value: float | Tensor, learn: bool) -> None:
        """A number stays one: it is exact in every dtype, and a tensor is read for each neuron."""
        if learn:
            self.register_parameter(name, nn.Parameter(torch.as_tensor(value).clone()))
        elif isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`Neuron.forward`, with the present decay and threshold."""
        decay = self.beta.clamp(0, 1) if isinstance(self.beta, Tensor) else self.beta
        spikes, v_final = lif_scan(x, v, decay=decay, v_threshold=self.v_threshold, **self.scan)
        return spikes, v_final

    def extra_repr(self) -> str:
        """The parameters in the printed model; a tensor by its shape."""
        own = {"beta": self.beta, "v_threshold": self.v_threshold}
        shown = {n: list(v.shape) if isinstance(v, Tensor) and v.dim() else float(v) for n, v in own.items()}
        return ", ".join([*(f"{name}={value}" for name, value in shown.items()), super().extra_repr()])
