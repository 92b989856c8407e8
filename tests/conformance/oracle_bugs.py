"""Kernels with one bug each, and the check of the conformance suite that is there to reject it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spikingbrain_hal import register_backend, unregister_backend, use_backend
from spikingbrain_hal.backend import Backend, Kernel
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.conformance.run.target import open_target
from spikingbrain_hal.conformance.run.worker import Session
from spikingbrain_hal.conformance.verdict.record import Record
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.testing import python_backend

GLA, STEP = "gated_linear_attention", "gated_linear_attention_step_"
Function = Callable[..., Any]


@contextmanager
def session(backend: Backend, seed: int = 0) -> Iterator[Session]:
    register_backend(backend)
    try:
        with use_backend(backend.name):
            yield Session(open_target(backend.name), seed)
    finally:
        unregister_backend(backend.name)


def run(backend: Backend, op: str, check: str, part: str = "", profile: str = "quick", seed: int = 0) -> list[Record]:
    with session(backend, seed) as running:
        items = [i for i in plan(profile, [op]) if i.op == op and i.check == check and part in ("", i.part)]
        items = [i for i in items if check != "random_shapes" or i.dtype == items[0].dtype]
        assert items
        return [running.run(i) for i in items]


def given(op: str, **values: Any) -> Function:
    """The reference with some arguments replaced, by a value or by a function of what was given."""

    def kernel(*args: Any) -> Any:
        a = OPERATORS[op].bind(args)
        return OPERATORS[op].reference(*(a | {n: v(a) if callable(v) else v for n, v in values.items()}).values())

    return kernel


def changed(op: str, change: Callable[[Mapping[str, Any], list[Tensor]], Any]) -> Function:
    """The reference, its outputs changed in place."""

    def kernel(*args: Any) -> Any:
        results = OPERATORS[op].reference(*args)
        outputs = [t.clone() for t in (results if isinstance(results, tuple) else (results,))]
        if outputs[0].numel():
            change(OPERATORS[op].bind(args), outputs)
        return tuple(outputs) if isinstance(results, tuple) else outputs[0]

    return kernel


def without_last_channel(a: Mapping[str, Any]) -> Tensor:
    gate: Tensor = a["g"].clone()
    if gate.dim() == 4:
        gate[..., -1] = 0
    return gate


def narrowed(tensor: Tensor, bits: int) -> Tensor:
    """A float32 tensor cut to so many stored bits of its fraction."""
    return (tensor.float().view(torch.int32) & -(1 << 23 - bits)).view(torch.float32).to(tensor.dtype)


def narrow_factors(op: str, bits: int) -> Function:
    names = [n for n in OPERATORS[op].inputs if n in ("q", "k", "v") or n.startswith("grad_")]

    def cut(name: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda a: a[name] if a[name] is None else narrowed(a[name], bits)

    return given(op, **{n: cut(n) for n in names})


def flushed(a: Mapping[str, Any], outputs: list[Tensor]) -> None:
    for t in outputs:
        if t.is_floating_point():
            t[t.abs() < torch.finfo(torch.float32).tiny] = 0


def narrow_state(*args: Any) -> Any:
    """Integrates in bfloat16, a step at a time."""
    a = OPERATORS["lif_scan"].bind(args)
    if not len(a["x"]):
        return OPERATORS["lif_scan"].reference(*args)
    spikes, trace, v = [], [], a["v0"]
    for x in a["x"]:
        s, v, all_v = OPERATORS["lif_scan"].reference(*(a | {"x": x[None], "v0": v}).values())
        v = v.bfloat16().float()
        spikes.append(s)
        trace.append(all_v)
    return torch.cat(spikes), v, torch.cat(trace)


def drops_a_tail(a: Mapping[str, Any], outputs: list[Tensor]) -> None:
    if a["k"].shape[1] % 4 == 1:
        outputs[0].view(-1)[-1] += 1


def with_kernel(op: str, change: Callable[[Kernel], Kernel], simulated: bool = True) -> Backend:
    plain = python_backend("planted")
    kernels = dict(plain.load())
    kernels[op] = change(kernels[op])
    return replace(plain, load=lambda: kernels, simulated=simulated)


REJECTED: dict[str, tuple[str, Function, str, str]] = {
    "gate gradient x 1.1": (
        f"{GLA}_backward",
        changed(f"{GLA}_backward", lambda a, out: out[3].mul_(1.1)),
        "directional",
        "",
    ),
    "reset gradient attached": (
        "lif_scan_backward",
        given("lif_scan_backward", detach_reset=False),
        "directional",
        "",
    ),
    "scale gradient of one group": (
        "spike_linear_backward",
        changed("spike_linear_backward", lambda a, out: out[1][:, 0].zero_()),
        "directional",
        "",
    ),
    "key gradient of a scale too many": (
        "attention_backward",
        changed("attention_backward", lambda a, out: out[1].mul_(a["scale"])),
        "directional",
        "",
    ),
    "values clamped": (GLA, given(GLA, v=lambda a: a["v"].clamp(-8, 8)), "superposition", ""),
    "first head a little larger": (
        GLA,
        changed(GLA, lambda a, out: out[0][:, :, 0].mul_(1 + 2.0**-10)),
        "permuted",
        "H",
    ),
    "last row a little larger": (
        "attention",
        changed("attention", lambda a, out: out[0][-1:].mul_(1 + 2.0**-10)),
        "permuted",
        "B",
    ),
    "last output of a linear layer rounded": (
        "spike_linear",
        changed("spike_linear", lambda a, out: out[0][..., -1].mul_(1 + 2.0**-10)),
        "permuted",
        "N",
    ),
    "last channel of full gates ignored": (GLA, given(GLA, g=without_last_channel), "broadcast", "g"),
    "scale at least a tenth": (
        "attention",
        given("attention", scale=lambda a: max(a["scale"], 0.1)),
        "related",
        "scale_moved_into_queries",
    ),
    "window below the number of keys": (
        "attention",
        given("attention", window=lambda a: min(a["window"], a["k"].shape[1] - 1)),
        "related",
        "window_of_every_key",
    ),
    "threshold at most 1": (
        "lif_scan",
        given("lif_scan", v_threshold=lambda a: min(a["v_threshold"], 1.0)),
        "related",
        "every_potential_doubled",
    ),
    "decay of each neuron ignored": (
        "lif_scan",
        given("lif_scan", decay_tensor=lambda a: None if a["decay_tensor"] is None else a["decay_tensor"] ** 2),
        "related",
        "numbers_given_as_tensors",
    ),
    "least threshold fixed": ("spike_encode", given("spike_encode", vth_min=1e-5), "related", "activations_doubled"),
    "levels shifted": (
        "spike_quantize",
        changed("spike_quantize", lambda a, out: out[0].add_(1e-3)),
        "related",
        "moderate_activations_doubled",
    ),
    "gates a thousandth off": (GLA, given(GLA, g=lambda a: a["g"] - 1e-3), "closed_form", "nothing_forgotten"),
    "gates bounded": (GLA, given(GLA, g=lambda a: a["g"].clamp_min(-5)), "closed_form", "everything_forgotten"),
    "LSE of one key more": (
        "attention",
        changed("attention", lambda a, out: out[1].add_(1e-3)),
        "closed_form",
        "indifferent_queries",
    ),
    "LSE without the scale": (
        "attention",
        changed("attention", lambda a, out: out[1].div_(a["scale"])),
        "closed_form",
        "one_key",
    ),
    "decay of 1 leaks": (
        "lif_scan",
        given("lif_scan", decay=lambda a: a["decay"] * 0.999),
        "closed_form",
        "perfect_integrator",
    ),
    "bias forgotten": ("spike_linear", given("spike_linear", bias=None), "closed_form", "silence"),
    "counts rounded towards 0": (
        "spike_encode",
        given("spike_encode", k=lambda a: a["k"] * 0.99),
        "closed_form",
        "level_rows",
    ),
    "collapses the other way round": ("spike_collapse", given("spike_collapse", bit_order="lsb"), "composed", ""),
    "a step of another scale": (STEP, given(STEP, scale=lambda a: a["scale"] * 1.001), "composed", ""),
    "TF32 products": (GLA, narrow_factors(GLA, 10), "numerics", "products"),
    "TF32 products of attention": ("attention", narrow_factors("attention", 10), "numerics", "products"),
    "TF32 products of a gradient": (
        f"{GLA}_backward",
        narrow_factors(f"{GLA}_backward", 10),
        "numerics",
        "products",
    ),
    "denormals flushed": ("attention", changed("attention", flushed), "numerics", "denormals"),
    "denormal potentials flushed": ("lif_scan", changed("lif_scan", flushed), "numerics", "denormals"),
    "potentials in bfloat16": ("lif_scan", narrow_state, "numerics", "sums"),
    "sums in bfloat16": (
        GLA,
        changed(GLA, lambda a, out: [t.copy_(t.bfloat16().float()) for t in out]),
        "numerics",
        "sums",
    ),
    "no slope at infinite and NaN currents": (
        "lif_scan_backward",
        changed("lif_scan_backward", lambda a, out: out[0].masked_fill_(~a["x"].isfinite(), 0)),
        "nonfinite",
        "straight_through",
    ),
    "an infinite potential survives its reset": (
        "lif_scan",
        changed("lif_scan", lambda a, out: out[2].masked_fill_(a["x"].isposinf(), torch.nan)),
        "nonfinite",
        "",
    ),
    "a tail of one key": ("attention", changed("attention", drops_a_tail), "random_shapes", ""),
}
TESTED = {"collapses the other way round": "spike_expand", "a step of another scale": GLA}
