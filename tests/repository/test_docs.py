"""The written word: generated pages are fresh, examples run, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import spikingbrain_hal as hal
from checkout import ROOT, project_files
from docs import generate as docs

PAGES = [path for path in project_files() if path.suffix == ".md"]
COMMANDS = re.compile(r"^\s*make ([\w-]+)|`make ([\w-]+)`", re.M)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def test_generated_pages_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_stale_pages_are_named_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main(["--check"]) == 1
    assert "docs/ops.md is stale" in capsys.readouterr().out
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    assert (tmp_path / "docs/ops.md").read_text() == (ROOT / "docs/ops.md").read_text()


def test_page_has_a_row_and_a_section_for_every_operator() -> None:
    page = docs.page()
    for name in hal.ops.__all__:
        assert f"[`{name}`](#{name})" in page
        assert f"\n## {name}\n" in page
    assert ":func:" not in page
    assert "inspect" not in page


def test_readme_example_runs() -> None:
    (block,) = python_blocks("README.md")
    scope: dict[str, object] = {}
    exec(block, scope)
    state = scope["state"]
    assert isinstance(state, torch.Tensor)
    assert state.isfinite().all()


def test_backend_guide_example_runs() -> None:
    (block,) = python_blocks("docs/add-a-backend.md")
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    try:
        exec(block, scope)
        y = scope["y"]
        torch.manual_seed(0)
        with hal.use_backend("reference"):
            expected = hal.ops.spike_quantize(torch.randn(4, 128))
        assert isinstance(y, torch.Tensor)
        torch.testing.assert_close(y, expected)
        with hal.use_backend("mine"), pytest.raises(hal.UnsupportedOp, match="only float32"):
            hal.ops.spike_quantize(torch.randn(4, 128, dtype=torch.bfloat16))
    finally:
        hal.unregister_backend("mine")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    missing = [link for link in links if not (ROOT / page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {a or b for a, b in COMMANDS.findall((ROOT / page).read_text(encoding="utf-8"))}
    assert named <= targets
