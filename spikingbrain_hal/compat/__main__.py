"""``python -m spikingbrain_hal.compat [options] script.py arguments...`` runs a script with the stand-ins installed."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from . import install
from .fla import PROFILES
from .flash_attn import VERSION
from .redirect import CudaRedirected

COMMAND = "python -m spikingbrain_hal.compat"


def device(name: str) -> torch.device:
    """A device that is there, by its name.

    Raises:
        argparse.ArgumentTypeError: There is no such device.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} can't be used: {str(error).splitlines()[0]}") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(COMMAND, description=__doc__, allow_abbrev=False)
    p.add_argument("--fla", choices=PROFILES, default="current", help="version of fla: 0.1 reads [B, H, T, D]")
    p.add_argument("--flash-attn", default=VERSION, metavar="VERSION", help="version that flash_attn says it is")
    p.add_argument("--strict", action="store_true", help="refuse fla calls that look like the other layout")
    p.add_argument("--override", action="store_true", help="shadow these libraries even where they work")
    p.add_argument("--announce", action="store_true", help="let transformers take flash-attn for installed")
    p.add_argument(
        "--device",
        type=device,
        help='what .cuda(), .to("cuda") and device="cuda" mean in the script; CUDA if not given',
    )
    p.add_argument("script", help="a Python file")
    p.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the script as ``python script.py`` does: as ``__main__``, with its own ``sys.argv`` and ``sys.path[0]``.

    The stand-ins stay until the interpreter ends; processes that the script spawns rather than forks don't have them.
    What the script raises, its exit code too, goes on to the caller.

    Raises:
        SystemExit: Code 2: the arguments are wrong, or the script can't be read.
    """
    given = parser().parse_args(arguments)
    try:
        with io.open_code(str(Path(given.script).absolute())) as file:
            source = file.read()
    except OSError as error:
        print(f"{COMMAND}: can't open file {given.script!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    code = compile(source, given.script, "exec", dont_inherit=True)
    script = ModuleType("__main__")
    script.__dict__.update(__file__=given.script, __builtins__=__builtins__)
    sys.modules["__main__"] = script
    sys.argv = [given.script, *given.arguments]
    if not getattr(sys.flags, "safe_path", False):  # -P leaves the current folder out, which the script's replaces
        sys.path[0] = str(Path(given.script).resolve().parent)
    install(given.fla, given.flash_attn, strict=given.strict, override=given.override, announce=given.announce)
    place: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if given.device is not None:
        place = CudaRedirected(given.device)
        print(f'{COMMAND}: .cuda(), .to("cuda") and device="cuda" mean {given.device} in this script', file=sys.stderr)
    try:
        with place:
            exec(code, script.__dict__)
    except (AssertionError, RuntimeError) as error:
        if given.device is None and not torch.cuda.is_available() and ("CUDA" in str(error) or "NVIDIA" in str(error)):
            print(f"{COMMAND}: the script asks for CUDA, which is not here; see --device", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
