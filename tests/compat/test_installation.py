"""Installing, nesting and taking away: nothing of it stays, and nothing real is shadowed unasked."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from spikingbrain_hal import compat
from spikingbrain_hal.compat.finder import CompatFinder

ROOTS = ("fla", "flash_attn", "triton", "Int2Spike", "moba")


def loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ROOTS]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    path, jit = list(sys.meta_path), torch.cuda.jiterator._create_jit_fn
    yield
    assert loaded() == []
    assert sys.meta_path == path
    assert torch.cuda.jiterator._create_jit_fn is jit


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    with compat.installed() as installation:
        assert loaded() == []
        assert installation.libraries == ("fla", "moba", "flash_attn", "Int2Spike", "triton")
        import fla.ops.gla  # noqa: F401

        assert loaded() == ["fla", "fla.ops", "fla.ops.gla"]


def test_submodules_are_attributes() -> None:
    with compat.installed(fla="0.4"):
        import fla
        import flash_attn

        assert fla.__version__ == "0.4.0"
        assert fla.ops.gla.chunk_gla is fla.ops.chunk_gla
        assert flash_attn.bert_padding.pad_input.__name__ == "pad_input"
        with pytest.raises(AttributeError, match=r"fla of spikingbrain_hal\.compat has no 'nothing'"):
            _ = fla.nothing
        assert importlib.util.find_spec("fla.ops.nothing") is None
        assert importlib.util.find_spec("fla.ops.gla").origin == "spikingbrain_hal.compat"


def test_leaves_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), compat.installed():
        exec("import triton; 1 / 0")


def test_objects_outlive_the_installation() -> None:
    import pickle

    with compat.installed():
        from fla.modules import RMSNorm
    norm = pickle.loads(pickle.dumps(RMSNorm(4)))
    assert norm(torch.ones(2, 4)).shape == (2, 4)


def test_install_and_uninstall() -> None:
    compat.install(fla="0.1")
    try:
        import fla

        assert fla.__version__ == "0.1.0"
    finally:
        compat.uninstall()
    with pytest.raises(RuntimeError, match="nothing is installed"):
        compat.uninstall()
    with pytest.raises(ImportError):
        import fla


def test_inner_installation_has_its_own_version() -> None:
    with compat.installed(fla="0.1"):
        import fla as outer
        import triton as outer_triton

        with compat.installed(fla="current", triton=False):
            import fla as inner
            import triton

            assert inner.__version__ == "0.6.0"
            assert triton is outer_triton
        import fla

        assert fla is outer


def test_order_of_leaving_is_kept() -> None:
    first, second = compat.installed().__enter__(), compat.installed().__enter__()
    with pytest.raises(RuntimeError, match="installed after this first"):
        first.uninstall()
    second.uninstall()
    with pytest.raises(RuntimeError, match="is active already"):
        first.__enter__()
    first.uninstall()
    with pytest.raises(RuntimeError, match="is not active"):
        first.uninstall()


def test_libraries_can_be_left_out() -> None:
    with compat.installed(fla=None, flash_attn=None, int2spike=False):
        import triton  # noqa: F401

        for name in ("fla", "moba", "flash_attn", "Int2Spike"):
            with pytest.raises(ImportError):
                importlib.import_module(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(fla="0.3"), "fla is '0.3', expected one of '0.1', '0.4', 'current'"),
        (dict(flash_attn="new"), "flash_attn is 'new'"),
        (dict(flash_attn=None, announce=True), "announce is True"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compat.installed(**options)


def test_imports_from_several_threads() -> None:
    found: list[Any] = []

    def client() -> None:
        from fla.ops.gla import chunk_gla

        found.append(chunk_gla)

    with compat.installed():
        threads = [threading.Thread(target=client) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def package(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to install packages into."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in loaded():
        del sys.modules[name]


def test_a_working_library_stays(site: Path) -> None:
    package(site, "Int2Spike", "mine = True")
    (site / "Int2Spike/neuron.py").touch()
    with pytest.warns(compat.CompatWarning, match=r"Int2Spike is installed .* and works, so it stays; override=True"):
        compat.install()
    try:
        import Int2Spike

        assert Int2Spike.mine
    finally:
        compat.uninstall()
    assert sys.modules["Int2Spike"] is Int2Spike


def test_override_shadows_it_and_puts_it_back(site: Path) -> None:
    package(site, "Int2Spike", "mine = True")
    import Int2Spike

    before = Int2Spike
    with pytest.warns(compat.CompatWarning, match="its stand-in shadows it"):
        installation = compat.install(override=True)
    import Int2Spike

    assert not hasattr(Int2Spike, "mine")
    assert Int2Spike.neuron is not None
    installation.uninstall()
    assert sys.modules["Int2Spike"] is before


def test_a_broken_library_is_shadowed(site: Path) -> None:
    package(site, "triton", "raise OSError('no library')")
    with pytest.warns(
        compat.CompatWarning, match=r"can't be used here \(OSError: no library\); its stand-in shadows it"
    ):
        compat.install()
    try:
        import triton

        assert triton.cdiv(3, 2) == 2
    finally:
        compat.uninstall()


def test_a_library_for_gpus_does_not_work_without_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site, "flash_attn", "")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.warns(compat.CompatWarning, match="no GPU is available"), compat.installed():
        from flash_attn import flash_attn_func
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.warns(compat.CompatWarning, match="and works"), compat.installed(), pytest.raises(ImportError):
        from flash_attn import flash_attn_func  # noqa: F401


def test_a_folder_of_that_name_is_no_library(site: Path) -> None:
    (site / "fla").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compat.installed():
            from fla.ops.gla import chunk_gla  # noqa: F401


def test_frameworks_do_not_find_the_stand_ins() -> None:
    """What they import while they probe; remote code, which one of them imports for the client, is no probe."""
    with compat.installed():
        for prober in ("torch._inductor.x", "transformers.utils.import_utils", "accelerate.utils"):
            module = ModuleType(prober)
            exec(
                "def probe(name):\n    import importlib.util\n    return importlib.util.find_spec(name)",
                module.__dict__,
            )
            assert [module.probe(name) for name in ROOTS] == [None] * len(ROOTS)
        module = ModuleType("transformers.dynamic_module_utils")
        exec("import fla, flash_attn, triton", module.__dict__)
        for name in ROOTS:
            with pytest.raises(importlib.metadata.PackageNotFoundError):
                importlib.metadata.version(name)


def test_the_finder_answers_for_nobody_else() -> None:
    with compat.installed() as installation:
        assert isinstance(installation.finder, CompatFinder)
        for name in ("json", "flax", "fla_core", "tritonclient", "x.fla"):
            assert installation.finder.find_spec(name) is None


def test_the_cache_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.cache_utils", None)
    monkeypatch.delitem(sys.modules, "spikingbrain_hal.compat.fla.cache", raising=False)
    with compat.installed(), pytest.raises(ImportError, match=r"pip install 'spikingbrain-hal\[models\]'"):
        import fla.models.utils  # noqa: F401
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    monkeypatch.setitem(sys.modules, "transformers.utils.import_utils", None)
    with pytest.raises(ImportError, match=r"announce=True needs transformers"):
        compat.install(announce=True)
