"""What the suite knows of operators: found by name or registered, and never less than an operator has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from spikingbrain_hal.conformance import operators
from spikingbrain_hal.conformance.checks.blocks import BLOCKS
from spikingbrain_hal.conformance.operators import Independent, Properties, properties_of, register
from spikingbrain_hal.conformance.run.case import plan
from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.spec import OpSpec
from spikingbrain_hal.testing import assert_matches, make_inputs

OTHER = "spike_quantize_elsewhere"


@pytest.fixture
def declared() -> Iterator[OpSpec]:
    """An operator of another package, declared for one test and not known to the suite."""
    spec = OPERATORS[OTHER] = replace(OPERATORS["spike_quantize"], name=OTHER)
    yield spec
    del OPERATORS[OTHER]
    operators.PROPERTIES.pop(OTHER, None)
    operators._find.cache_clear()


def test_operator_that_the_suite_knows_nothing_of_is_refused(declared: OpSpec) -> None:
    where = (
        rf"{OTHER}, .*register\('{OTHER}', ...\) in spikingbrain_hal/conformance/operators/{OTHER}.py, or in the module"
    )
    for ask in (lambda: plan("quick"), lambda: plan("quick", [OTHER], level=0), lambda: properties_of(declared)):
        with pytest.raises(ValueError, match=where):
            ask()
    args = make_inputs(declared, declared.cases[0])
    with pytest.raises(ValueError, match=where):
        assert_matches(declared, args, declared.reference(*args))
    assert plan("quick", ["spike_quantize"])


def test_operator_of_another_package_is_registered(declared: OpSpec) -> None:
    register(OTHER, Properties(independent=(Independent("..."),)))
    assert {i.op for i in plan("quick", [OTHER])} == {OTHER}
    assert {i.part for i in plan("full", [OTHER]) if i.check == "permuted"} == {"..."}


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_is_known(op: str) -> None:
    assert isinstance(properties_of(OPERATORS[op]), Properties)


def test_a_file_may_not_be_replaced(declared: OpSpec) -> None:
    properties_of(OPERATORS["lif_scan"])
    with pytest.raises(ValueError, match="properties of lif_scan: they are registered already"):
        register("lif_scan", Properties())


def test_nothing_is_known_of_what_is_not_declared() -> None:
    with pytest.raises(ValueError, match="properties of no_such: there is no such operator; declared are attention, "):
        register("no_such", Properties())


def test_backward_of_an_operator_without_one_is_refused(declared: OpSpec) -> None:
    with pytest.raises(ValueError, match=f"{OTHER}: backward is given, and {OTHER} has none"):
        register(OTHER, Properties(), backward=Properties())
    assert OTHER not in operators.PROPERTIES


@pytest.mark.parametrize(
    "wrong",
    [
        {"magnitude": ("z",)},
        {"linear": {"z": ("x",)}},
        {"linear": {"y": ("z",)}},
        {"equivalent": (({"k": 1.0}, {"z": 1.0}),)},
        {"independent": (Independent("z"),)},
        {"independent": (Independent("K", ("z",)),)},
        {"independent": (Independent("K", unless="z"),)},
        {"smooth": {"z": 0}},
        {"factors": ("z",)},
        {"proportional": {"z": ("x",)}},
        {"proportional": {"y": ("z",)}},
        {"wrong_contents": {"z": lambda a: []}},
        {"choices": {"z": (1,)}},
        {"sizes": {"z": lambda known: (1,)}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_misspelt_names_are_refused(declared: OpSpec, wrong: Mapping[str, Any]) -> None:
    (which,) = wrong
    with pytest.raises(ValueError, match=f"properties of {OTHER}: {which} names 'z', expected "):
        register(OTHER, Properties(**wrong))
    assert OTHER not in operators.PROPERTIES


def test_backward_has_what_follows_from_its_forward() -> None:
    known = properties_of(OPERATORS["gated_linear_attention_backward"])
    gradients = ("grad_o", "grad_final_state")
    assert known.magnitude == ("q", "k", "v", "initial_state", *gradients)
    assert known.linear["grad_g"] == gradients


def test_every_block_of_a_model_has_its_operators() -> None:
    needed = {block for spec in OPERATORS.values() for block in properties_of(spec).blocks}
    assert needed == BLOCKS.keys()
