"""``sbhal conformance``: run the suite on one backend and write the report."""

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..conformance import report
from ..conformance.run.journal import NAME, Journal
from ..conformance.run.runner import Unavailable
from ..conformance.run.settings import CASE_TIMEOUT, Settings, default_jobs, default_memory
from ..conformance.run.suite import Options, conduct
from ..conformance.verdict.levels import LEVELS
from ..conformance.verdict.waivers import File
from .progress import progress
from .refusals import finite
from .summary import print_summary

FOLDER = Path("out/report")


class Interrupts:
    """Ctrl-C and SIGTERM: the first interrupts, what is done about it then is not interrupted in turn.

    Attributes:
        code: The exit code that says so, 0 if there was none.
        listening: Whether the next one interrupts.
    """

    def __init__(self) -> None:
        self.code, self.listening = 0, True

    def _interrupt(self, number: int, _: Any) -> None:
        if self.listening:
            self.code, self.listening = 128 + number, False
            raise KeyboardInterrupt(f"interrupted by {signal.Signals(number).name}")

    def __enter__(self) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._interrupt) for number in numbers}

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def conformance(
    backend: Annotated[str | None, typer.Option(help="The backend to test.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="Only this operator and its backward; repeatable.")] = None,
    profile: Annotated[str | None, typer.Option(help="quick or full; full if absent.")] = None,
    level: Annotated[int | None, typer.Option(help=f"Only levels up to this, 0 to {max(LEVELS)}.")] = None,
    out: Annotated[Path | None, typer.Option(help=f"Folder for the report; {FOLDER} if absent.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the interrupted run whose folder this is.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Chooses all inputs; SBHAL_SEED if absent, else a new one each run.")
    ] = None,
    case: Annotated[str | None, typer.Option(help="Only cases whose id is, contains or matches this.")] = None,
    waivers: Annotated[Path | None, typer.Option(help="TOML file of known failures.")] = None,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Leave the performance section out.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes at once; one a core, up to 4.")] = None,
    wave: Annotated[int | None, typer.Option(help="Wavefront of the sim backend, 32 or 64.")] = None,
    timeout: Annotated[
        float, typer.Option(min=1e-3, callback=finite, help="Seconds that one case may take.")
    ] = CASE_TIMEOUT,
    memory: Annotated[
        int | None, typer.Option(min=64, help="MiB by which a worker process may grow; most of what is free if absent.")
    ] = None,
    modules: Annotated[
        list[str] | None, typer.Option("--import", help="Python module that registers the backend; repeatable.")
    ] = None,
) -> None:
    """Test a backend against the float64 oracle and every other promise, and write a report.

    Exits with 0 if nothing is broken and something passed, with 1 if not, with 2 if nothing could be run or no report
    written, and with 128 and the signal's number if it was interrupted; the report then holds what there was, and
    --resume continues.
    """
    console = Console()
    asked = {"backend": backend, "ops": op, "profile": profile, "level": level, "seed": seed, "case": case}
    asked |= {"modules": modules, "wave": wave, "waivers": str(waivers) if waivers else None}
    given = {name: value for name, value in asked.items() if value not in (None, [])} | {"bench": not no_bench}
    interrupts = Interrupts()
    try:
        earlier = _earlier(resume, out) if resume else None
        options = _continued(earlier, given) if earlier else _new(given)
        folder, waived = _folder(resume or out or FOLDER), _waivers(options)
        _set_environment(options.backend, options.wave)
        settings = Settings(
            backend=options.backend,
            seed=options.seed,
            jobs=jobs or default_jobs(),
            modules=tuple(options.modules),
            timeout=timeout,
            memory=memory or default_memory(),
        )
        with interrupts:
            command = shlex.join(["sbhal", *sys.argv[1:]])
            found, written = conduct(options, settings, folder, command, earlier, waived, partial(progress, console))
            interrupts.listening = False  # a report is written whole
            print_summary(console, found)
            attached = {NAME: written.path.read_bytes()} if written else {}
            attached |= {"waivers.toml": waived.content} if waived else {}
            with written or nullcontext():  # until all is written the folder is this run's alone
                for kind, path in report.write(found, folder, attached).items():
                    console.print(f"{kind}: {path}", soft_wrap=True)
    except (ValueError, Unavailable, KeyboardInterrupt) as error:
        console.print(f"[bold red]nothing was run:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(interrupts.code or 2) from error
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        console.print(f"[bold red]no report was written:[/] {escape(reason)}", soft_wrap=True)
        raise typer.Exit(interrupts.code or 2) from error
    raise typer.Exit(interrupts.code or int(not found.passed))


def _new(given: Mapping[str, Any]) -> Options:
    if "backend" not in given:
        raise ValueError("--backend is missing, or --resume")
    return Options(**given if "seed" in given else {"seed": _seed(), **given})


def _seed() -> int:
    """What SBHAL_SEED says, drawn where it says nothing."""
    given = os.environ.get("SBHAL_SEED", "")
    if given and not given.isdecimal():
        raise ValueError(f"SBHAL_SEED is {given!r}, expected a whole number")
    return int(given) if given else random.SystemRandom().randrange(1 << 31)


def _folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, expected the folder for the report")
    return folder


def _waivers(options: Options) -> File | None:
    """Read once, before anything runs, so that judgement and bundle have the same."""
    return File.read(Path(options.waivers)) if options.waivers else None


def _earlier(resume: Path, out: Path | None) -> Journal:
    if out is not None and out != resume:
        raise ValueError(f"--resume {resume} continues in that folder; --out {out} is another")
    return Journal.resume(resume)


def _continued(earlier: Journal, given: Mapping[str, Any]) -> Options:
    """The options of the run that is continued, from which only waivers and the benchmarks may differ."""
    try:
        options = Options(**earlier.options)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(Options))
        head = f"its options are {earlier.options!r}, this version has {known}"
        raise ValueError(f"cannot resume {earlier.path.parent}: {head}") from error
    for field in fields(Options):
        before, now = getattr(options, field.name), given.get(field.name)
        if field.name not in ("waivers", "bench") and now is not None and now != before:
            raise ValueError(f"cannot resume {earlier.path.parent}: its {field.name} is {before!r}, not {now!r}")
    waivers, bench = given.get("waivers", options.waivers), given["bench"] and options.bench
    return replace(options, waivers=waivers, bench=bench)


def _set_environment(backend: str, wave: int | None) -> None:
    """What the backend and the worker processes read; set before anything native is loaded."""
    os.environ.setdefault("SBHAL_CHECK", "1")
    if wave is None:
        return
    if backend != "sim":
        raise ValueError(f"--wave is for the sim backend, not for {backend}")
    os.environ["SBHAL_SIM_WAVE"] = str(wave)
