"""Calls in the layout of another version are reported, once, and refused when strict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from client import run

from spikingbrain_hal.compat import LayoutError, LayoutWarning

HEADS = 4


def client(profile: str, calls: Sequence[tuple[int, bool]], head_first: bool, strict: bool = False) -> list[str]:
    """Makes calls of some steps each, carrying the state where asked; returns what was warned of, and errors raised."""
    source = """
        from fla.ops.gla import chunk_gla, fused_recurrent_gla
        state = None
        for steps, carry in calls:
            q = torch.rand((1, heads, steps, 8) if head_first else (1, steps, heads, 8))
            f = fused_recurrent_gla if steps == 1 else chunk_gla
            _, state = f(q, q, q, -q, initial_state=state if carry else None, output_final_state=True)
    """
    names: dict[str, Any] = dict(calls=calls, head_first=head_first, heads=HEADS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(source, names, fla=profile, strict=strict)
        except LayoutError:
            raise
        except ValueError as error:
            assert "initial_state" in str(error)  # noqa: PT017 - the operator's own refusal, after the warning
    return [str(w.message) for w in caught if w.category is LayoutWarning]


BETRAYED = {
    "more channels than any layer": [(5000, False)],
    "texts of three lengths": [(50, False), (20, False), (20, False), (30, False)],
    "a carried state": [(3, False), (1, True)],
}


@pytest.mark.parametrize(("profile", "fits"), [("0.1", "current"), ("0.4", "0.1"), ("current", "0.1")])
@pytest.mark.parametrize("calls", BETRAYED.values(), ids=BETRAYED)
def test_other_layout_is_reported_and_refused(profile: str, fits: str, calls: list[tuple[int, bool]]) -> None:
    head_first = profile != "0.1"
    found = client(profile, calls * 2, head_first)
    assert len(found) == 1
    assert f"fla={fits!r}" in found[0]
    assert f"fla={profile!r}" in found[0]
    assert "gla: q is [1, " in found[0]
    with pytest.raises(LayoutError, match=f"fla='{fits}'"):
        client(profile, calls, head_first, strict=True)


@pytest.mark.parametrize("profile", ["0.1", "0.4", "current"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "calls",
    [
        [(50, False), (1, True), (1, True), (7, True), (2, False)],
        [(9, False), (9, False), (33, False)],
        [(4, False), (1, True), (3, True)],
        [(1, False), (1, True)],
        [(3, False)] * 3,
        [(3, False), (2, False), (1, False), (3, True)],
        [(3, False), (1, True), (1, True), (2, False), (5000, False)],
    ],
)
def test_right_layout_is_quiet(profile: str, strict: bool, calls: list[tuple[int, bool]]) -> None:
    assert client(profile, calls, profile == "0.1", strict) == []


def test_an_explicit_layout_is_believed() -> None:
    source = """
        from fla.ops.gla import chunk_gla
        q = torch.rand(1, 2, 30, 8)
        chunk_gla(q, q, q, -q, head_first=False)
    """
    run(source, fla="0.1", strict=True)


def test_packed_sequences_are_time_first() -> None:
    source = """
        from fla.ops.gla import chunk_gla
        q = torch.rand(1, 3, 30, 8)
        chunk_gla(q, q, q, -q, cu_seqlens=torch.tensor([0, 1, 3]))
    """
    run(source, fla="current", strict=True)


@pytest.mark.parametrize("steps", [3, 30])
@pytest.mark.parametrize("profile", ["0.1", "current"])
def test_two_models_side_by_side_are_no_sign(profile: str, steps: int) -> None:
    """Of other head sizes, or other head counts, on prompts shorter than either has heads too."""
    source = """
        from fla.ops.gla import chunk_gla
        for heads, size in ((4, 8), (6, 16), (6, 8)) * 2:
            q = torch.rand((1, heads, steps, size) if head_first else (1, steps, heads, size))
            chunk_gla(q, q, q, -q)
    """
    run(source, dict(steps=steps, head_first=profile == "0.1"), fla=profile, strict=True)


def test_linear_attention_is_watched_too() -> None:
    source = """
        from fla.ops.linear_attn import chunk_linear_attn
        q = torch.rand(1, 4, 5000, 8)
        chunk_linear_attn(q, q, q)
    """
    with pytest.raises(LayoutError, match="chunk_linear_attn"):
        run(source, fla="current", strict=True)


def test_warning_points_at_the_caller() -> None:
    source = "from fla.ops.gla import chunk_gla\nq = torch.rand(1, 4, 5000, 8)\nchunk_gla(q, q, q, -q)"
    with pytest.warns(LayoutWarning) as caught:
        run(source, fla="current")
    assert caught[0].filename == "client.py"
    assert caught[0].lineno == 3
