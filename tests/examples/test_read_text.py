"""The example, end to end and tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "read_text.py"


def test_example_reads_text_and_reports(tmp_path: Path) -> None:
    for module in ("typer", "rich", "matplotlib"):
        pytest.importorskip(module)
    command = [sys.executable, str(EXAMPLE), "--quick", "--threads", "1", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["loss"]["last"] < found["loss"]["first"]
    assert 4 < found["loss"]["unigram_entropy"] < 5.5
    assert len(set(found["state_bytes"].values())) == 1
    lengths = set(found["state_bytes"])
    assert set(found["prefill_tokens_per_second"]) == lengths
    assert set(found["decode"]["linear_layers"]["tokens_per_second"]) == lengths
    assert set(found["first_token_seconds"]["transformer"]) <= set(found["first_token_seconds"]["spikingbrain"])
    assert 0 < found["spikes"]["zero_counts"] < found["spikes"]["zero_slots"] < 1
    assert found["sample"]
    assert (tmp_path / "read_text.png").read_bytes().startswith(b"\x89PNG")
