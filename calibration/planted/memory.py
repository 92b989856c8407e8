"""Kernels that compute the right numbers and break another promise: memory, order, threads, refusals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal.backend.backend import Kernel
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.errors import UnsupportedOp

from . import misbehaviour

OP = "attention"


def first_output(op: str, args: Sequence[Any]) -> Tensor:
    """The first output among the arguments of a launch."""
    output: Tensor = args[len(OPERATORS[op].arguments)]
    return output


@misbehaviour(OP, "Writes one element behind its output, as vectors of four do where sizes are odd.", check="poisoned")
def writes_beside_the_output(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        o = first_output(OP, args)
        if o.untyped_storage().nbytes() >= (o.storage_offset() + o.numel() + 1) * o.itemsize:
            o.as_strided((o.numel() + 1,), (1,), o.storage_offset())[-1] = 0

    return kernel._replace(launch=launch)


@misbehaviour(OP, "Leaves the last element as the allocator gave it.", check="poisoned")
def leaves_an_uninitialised_tail(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        o = first_output(OP, args)
        kept = o.reshape(-1)[-1:].clone()
        kernel.launch(*args)
        o.view(-1)[-1:] = kept

    return kernel._replace(launch=launch)


@misbehaviour("gated_linear_attention_step_", "A skipped row's output is never written.", check="poisoned")
def skipped_row_left_uninitialised(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        o, slots = first_output("gated_linear_attention_step_", args), args[5]
        kept = o.clone()
        kernel.launch(*args)
        if slots is not None:
            o[slots == -1] = kept[slots == -1]

    return kernel._replace(launch=launch)


@misbehaviour(OP, "Scales the queries in place: its output aliases an input.", check="poisoned")
def scales_an_input_in_place(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        args[0].mul_(0.25)

    return kernel._replace(launch=launch)


@misbehaviour("spike_encode", "Clamps the activations in place before it counts them.", check="poisoned")
def clamps_an_input_in_place(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        args[0].clamp_(-1, 1)

    return kernel._replace(launch=launch)


@misbehaviour(OP, "Writes behind the workspace: its plan counts one row too few.", check="poisoned")
def workspace_too_small(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        workspace = args[-3]
        if workspace.untyped_storage().nbytes() > workspace.storage_offset() + 64:
            workspace.as_strided((65,), (1,), workspace.storage_offset()).zero_()

    return kernel._replace(plan=lambda *args: kernel.plan(*args) or 64, launch=launch)


@misbehaviour("gated_linear_attention", "Takes it that the workspace comes cleared, and adds to it.", check="poisoned")
def workspace_taken_as_cleared(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        o = first_output("gated_linear_attention", args)
        o += args[-3][:4].view(torch.float32).to(o.dtype)

    return kernel._replace(plan=lambda *args: kernel.plan(*args) or 64, launch=launch)


@misbehaviour(OP, "Sums partial results in an order that depends on the number of threads.", check="threads")
def depends_on_threads(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        first_output(OP, args).mul_(1 + 2.0**-7 * (args[-1] - 1))

    return kernel._replace(launch=launch)


def _last_bits(output: Tensor) -> None:
    """Another order of sums."""
    flat = output.view(-1)[: max(1, output.numel() // 3)]
    flat.copy_(torch.where(flat == 0, flat, torch.nextafter(flat, torch.zeros_like(flat))))


@misbehaviour(OP, "A race between two blocks that add to one output: shows in one call of fifty.", check="repeated")
def races_once_in_fifty(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        if random.random() < 1 / 50:
            _last_bits(first_output(OP, args))

    return kernel._replace(launch=launch)


@misbehaviour(
    "spike_linear_backward", "Adds floats by atomics: another order, other bits, in every call.", check="repeated"
)
def adds_by_atomics(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        kernel.launch(*args)
        if random.random() < 1 / 2:
            _last_bits(args[len(OPERATORS["spike_linear_backward"].arguments) + 1])

    return kernel._replace(launch=launch)


@misbehaviour(OP, "Clears its output before it looks at the arguments, so a refused call has written.", check="refuses")
def writes_before_refusing(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        first_output(OP, args).zero_()
        kernel.launch(*args)

    return kernel._replace(launch=launch)


@misbehaviour("spike_linear", "Checks no argument: a wrong shape reads whatever lies there.", check="refuses")
def checks_nothing(kernel: Kernel) -> Kernel:
    return kernel._replace(plan=lambda *args: 0, launch=lambda *args: None)


@misbehaviour("lif_scan", "Its plan says yes, its launch says no.", check="values")
def lies_about_support(kernel: Kernel) -> Kernel:
    def launch(*args: Any) -> None:
        raise UnsupportedOp("lif_scan: not on this device")

    return kernel._replace(launch=launch)
