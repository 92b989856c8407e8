"""Blocks of a model pass where the operators are right, and fail where one of them is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from seeds import SEED
from spikingbrain_hal import register_backend, unregister_backend, use_backend
from spikingbrain_hal.conformance.checks import BackendContext
from spikingbrain_hal.conformance.checks.blocks import BLOCKS, block_gradients, block_state, block_values
from spikingbrain_hal.conformance.run.case import not_planned, plan
from spikingbrain_hal.conformance.run.target import Opened, open_target
from spikingbrain_hal.conformance.verdict.judge import Mismatch
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.testing import python_backend

Check = Callable[[BackendContext], None]
GLA, STEP = "gated_linear_attention", "gated_linear_attention_step_"


def changed(op: str, **values: Any) -> Callable[..., Any]:
    """The reference with some arguments replaced, by functions of what was given."""
    spec = OPERATORS[op]

    def run(*args: Any) -> Any:
        a = spec.bind(args)
        return spec.reference(*(a | {name: change(a) for name, change in values.items()}).values())

    return run


def run(check: Check, part: str, op: str = "", function: Callable[..., Any] | None = None) -> None:
    backend = python_backend("planted", {op: function} if function else {})
    register_backend(backend)
    try:
        with use_backend("planted"):
            check(BackendContext(open_target("planted"), SEED, part))
    finally:
        unregister_backend("planted")


@pytest.mark.parametrize("part", BLOCKS)
@pytest.mark.parametrize("check", [block_values, block_state, block_gradients])
def test_references_pass(check: Check, part: str) -> None:
    run(check, part)


@pytest.mark.parametrize(
    ("check", "part", "op", "values"),
    [
        (block_values, "linear", GLA, {"g": lambda a: a["g"] * 0.9}),
        (block_values, "windowed", "attention", {"window": lambda a: a["window"] and a["window"] - 1}),
        (block_values, "linear", "spike_quantize", {"k": lambda a: a["k"] + 1}),
        (block_state, "linear", GLA, {"initial_state": lambda a: None}),
        (block_state, "windowed", "attention", {"kv_lengths": lambda a: None, "window": lambda a: 3}),
        (block_gradients, "linear", f"{GLA}_backward", {"grad_o": lambda a: 1.1 * a["grad_o"]}),
        (block_gradients, "windowed", "attention_backward", {"scale": lambda a: 1.2 * a["scale"]}),
    ],
)
def test_a_wrong_operator_is_found(
    check: Check, part: str, op: str, values: dict[str, Callable[[dict[str, Any]], Any]]
) -> None:
    with pytest.raises(Mismatch, match="tokens are off"):
        run(check, part, op, changed(op, **values))


def test_a_block_is_planned_where_its_operators_are() -> None:
    def blocks(*served: str) -> set[str]:
        return {item.part for item in plan("quick", opened=Opened("toy", "cpu", served)) if item.level == 5}

    assert blocks(*OPERATORS) == set(BLOCKS)
    assert blocks("attention", "spike_quantize") == {"windowed"}
    assert blocks("attention") == set()
    assert "spike_quantize" in not_planned(Opened("toy", "cpu", ("attention",)))["block_values"]
