"""A run is like the one before: nothing that tests and continuous integration draw comes from the system."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hypothesis
import pytest
from typer.testing import CliRunner

from checkout import ROOT, attempt, project_files
from seeds import SEED
from spikingbrain_hal.cli.app import app

DRAWS = r"SystemRandom|torch\.seed\(|\bsecrets\b|default_rng\(\)|\$RANDOM|\$\$\{?RANDOM|random\.seed\(\)|time_ns\(\)\)"


def draws(text: str) -> list[str]:
    return re.findall(DRAWS, text)


@pytest.mark.parametrize("text", ["random.SystemRandom()", "SEED = torch.seed()", "X=$${RANDOM}", "default_rng()"])
def test_what_comes_from_the_system_is_known(text: str) -> None:
    assert draws(text)


def test_no_test_and_no_target_draws_from_the_system() -> None:
    kept = [p for p in project_files() if p.parts[0] in ("tests", ".ci", "Makefile") and p.name != Path(__file__).name]
    assert len(kept) > 50
    assert [str(p) for p in kept if draws((ROOT / p).read_text(encoding="utf-8"))] == []


def test_what_hypothesis_draws_follows_the_seed(tmp_path: Path) -> None:
    (tmp_path / "test_drawn.py").write_text(
        "from hypothesis import given, settings, strategies as st\n"
        "@settings(max_examples=5)\n@given(st.integers())\ndef test_drawn(n):\n    print('drew', n)\n"
    )

    def drawn(seed: int) -> list[str]:
        options = ("-q", "-s", "-p", "no:cacheprovider", f"--confcutdir={ROOT / 'tests'}", "-c", "/dev/null")
        load = ("-p", "conftest", tmp_path)
        done = attempt("python", "-m", "pytest", *options, *load, PYTHONPATH=f"{ROOT / 'tests'}", SBHAL_SEED=str(seed))
        return re.findall(r"drew (-?\d+)", done.stdout)

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert len(first) >= 5
    assert first == again != other
    assert hypothesis.settings().database is None  # what failed once is not tried before the rest


def test_a_run_of_the_suite_takes_the_seed_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["conformance", "--backend", "cpu", "--case", "spike_collapse/values", "--profile", "quick"]
    for seed, text in ((SEED, str(SEED)), (77, "77")):
        monkeypatch.setenv("SBHAL_SEED", text)
        out = tmp_path / text
        done = CliRunner().invoke(app, [*arguments, "--no-bench", "--jobs", "1", "--out", str(out)])
        assert json.loads((out / "report.json").read_text())["seed"] == seed, done.output
    monkeypatch.setenv("SBHAL_SEED", "seven")
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--out", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "SBHAL_SEED is 'seven', expected a whole number" in done.output
