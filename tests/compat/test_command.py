"""``python -m spikingbrain_hal.compat script.py`` runs a script as ``python script.py`` does."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from spikingbrain_hal import compat
from spikingbrain_hal.compat.__main__ import main
from spikingbrain_hal.compat.redirect import CudaRedirected

CUDA = torch.cuda.is_available()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path for a script; what running it changes in this process is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return tmp_path / "client.py"


def execute(path: Path, source: str, *options: str, arguments: tuple[str, ...] = ()) -> None:
    path.write_text(textwrap.dedent(source))
    try:
        main([*options, str(path), *arguments])
    finally:
        compat.uninstall()


def test_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("value = 7\n")
    (tmp_path / "client.py").write_text(
        textwrap.dedent("""
            import sys
            import beside
            import fla
            from flash_attn import flash_attn_func
            if __name__ == "__main__":
                assert __file__ == sys.argv[0] and sys.modules["__main__"].beside is beside
                print(fla.__version__, beside.value, *sys.argv[1:])
                sys.exit(3)
        """)
    )
    command = [sys.executable, "-m", "spikingbrain_hal.compat", "--fla", "0.1", "client.py", "--fla", "x", "-h"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "0.1.0 7 --fla x -h\n"), done.stderr


def test_exit_codes_and_exceptions(script: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        execute(script, "raise SystemExit(5)")
    assert caught.value.code == 5
    with pytest.raises(ZeroDivisionError):
        execute(script, "1 / 0")
    script.write_text("1 +")
    with pytest.raises(SyntaxError):
        main([str(script)])


def test_options(script: Path) -> None:
    source = """
        import flash_attn
        from fla.ops.gla import chunk_gla
        import torch
        assert flash_attn.__version__ == "2.6.3"
        q = torch.rand(1, 2, 5000, 8)
        chunk_gla(q, q, q, -q)
    """
    execute(script, source, "--fla", "0.1", "--flash-attn", "2.6.3", "--strict")
    with pytest.raises(compat.LayoutError):
        execute(script, source, "--flash-attn", "2.6.3", "--strict")


def test_script_that_is_not_there(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(script)])
    assert caught.value.code == 2
    assert "can't open file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--fla", "9", "x.py"], ["--unknown", "x.py"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m spikingbrain_hal.compat" in capsys.readouterr().err


MOVES = [
    "x.cuda()", "x.cuda(1, True)", "x.cuda(device=0, non_blocking=True)", 'x.to("cuda:3")', "x.to(0)",
    'x.to("cuda", torch.float64, True)', 'x.to(device=torch.device("cuda", 1))', 'torch.zeros(3, device="cuda")',
    'torch.empty_like(x, device="cuda")', 'torch.tensor([1.0], device=torch.device("cuda"))', "m.cuda(0).weight",
    'm.to("cuda:1", torch.float64).weight', 'torch.nn.Linear(2, 2, device="cuda").weight', "m.cuda().weight",
]  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_cuda_means_the_device_that_is_given(move: str) -> None:
    """And no other device, or number that is none."""
    names = dict(torch=torch, x=torch.ones(1), m=torch.nn.Linear(2, 2))
    with CudaRedirected(torch.device("meta")):
        assert eval(move, names).is_meta
        assert torch.zeros(2, device="cpu").device == torch.ones(2).to("cpu").device == torch.device("cpu")
        assert torch.ones(2).to(torch.int32).dtype == torch.int32
        assert torch.cuda.is_available() == CUDA
        with torch.device("cuda"):
            assert torch.zeros(2).is_meta
    with CudaRedirected(torch.device("cpu")):
        moved = eval(move, names | dict(m=torch.nn.Linear(2, 2)))
        assert moved.device.type == "cpu"
        assert (moved.dtype == torch.float64) == ("float64" in move)


@pytest.mark.parametrize(("name", "words"), [("meta:x", "meta:x"), ("quantum", "'quantum' can't be used")])
def test_a_device_that_is_not_there(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--device", name, "x.py"])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
