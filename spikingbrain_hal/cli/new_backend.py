"""``sbhal new-backend``: a package of its own for a vendor's backend, which builds at once and serves nothing yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..calls.dispatch import DEVICE_TYPES
from ..calls.selection import REFERENCE, installed_backends
from ..declare.registry import OPERATORS

INSTALL = "python -m pip install --no-build-isolation -e ."
NATIVE = "scikit-build-core pybind11 cmake ninja"


@dataclass(frozen=True)
class Style:
    """What kernels are written in.

    Attributes:
        device_types: Of the tensors that they may take; the first if none is chosen.
        needs: What building needs beside spikingbrain-hal.
        alias: The built-in backend whose alias header the package starts with.
        torch_for: Whose devices the torch of such devices sees, as :func:`~spikingbrain_hal.backend.torch_vendor` says.
    """

    device_types: tuple[str, ...]
    needs: str = NATIVE
    alias: str = ""
    torch_for: str = ""


STYLES = {
    "host": Style(("cpu",)),
    "cuda": Style(("cuda",), alias="cuda", torch_for="NVIDIA"),
    "hip": Style(("cuda",), alias="rocm", torch_for="AMD"),
    "python": Style(DEVICE_TYPES, needs="setuptools"),
}


def new_backend(
    name: Annotated[str, typer.Argument(help="The backend's name, in lower case.", show_default=False)],
    style: Annotated[str, typer.Option(help=f"What its kernels are: {', '.join(STYLES)}.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder to write; sbhal-NAME if absent.", show_default=False)] = None,
    device_type: Annotated[
        str | None, typer.Option(help="The torch device type of its tensors; by the style if absent.")
    ] = None,
) -> None:
    """Write a package for a backend, which builds, is found, and passes 0 operators until it has kernels.

    host: C++ for processors. cuda, hip: the GPU kernels that come with this package, or own ones, for a compiler that
    reads CUDA or HIP, whatever it is called. python: anything that Python can call, as Triton or a vendor's library.
    """
    console = Console()
    folder = out or Path(f"sbhal-{name}")
    try:
        written = write_package(name, style, folder, device_type)
    except (ValueError, OSError) as error:
        failure = "nothing was written" if isinstance(error, ValueError) else f"--out {folder} cannot be written"
        console.print(f"[bold red]{escape(failure)}:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from error
    for path in written:
        console.print(escape(str(folder / path)), soft_wrap=True)
    console.print(f"\n{name} serves 0 of {len(OPERATORS)} operators. Next, as {escape(str(folder))}/README.md says:\n")
    for command in (f"cd {folder}", INSTALL, f"sbhal conformance --backend {name}"):
        console.print(f"    {escape(command)}", soft_wrap=True)


def write_package(name: str, style: str, folder: Path, device_type: str | None = None) -> list[Path]:
    """Writes the package and returns the files, relative to the folder.

    Args:
        name: The backend's name: lower case letters, digits and underscores, the last not an underscore.
        style: A key of ``STYLES``.
        folder: Where; it is made, or empty.
        device_type: Of the tensors it takes, ``"cpu"`` or ``"cuda"``; by the style if absent.

    Raises:
        ValueError: An argument is not accepted, the name is taken, or the folder is not empty.
        OSError: The folder or a file in it cannot be made.
    """
    import jinja2

    chosen = _check(name, style, folder, device_type)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spikingbrain_hal.cli"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    known = {
        **asdict(chosen),
        "name": name,
        "package": f"sbhal_{name}",
        "style": style,
        "device_type": device_type or chosen.device_types[0],
        "version": __version__,
        "operators": len(OPERATORS),
        "install": INSTALL,
    }
    texts = {path: environment.get_template(template).render(known) for path, template in _templates(name, style)}
    texts[f"src/sbhal_{name}/__init__.py"] = ""
    if chosen.alias:
        texts["vendor.h"] = alias_header(name, chosen.alias)
    for path, text in texts.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return sorted(map(Path, texts))


def _templates(name: str, style: str) -> Iterator[tuple[str, str]]:
    """Where each file goes, and the template that it is made from."""
    yield "README.md", "README.md.j2"
    yield "pyproject.toml", "pyproject.toml.j2"
    yield "waivers.toml", "waivers.toml.j2"
    yield ".gitignore", "gitignore.j2"
    yield ".github/workflows/conformance.yml", "conformance.yml.j2"
    yield "tests/test_conformance.py", "test_conformance.py.j2"
    yield f"src/sbhal_{name}/backend.py", "backend.py.j2"
    if style == "python":
        yield f"src/sbhal_{name}/kernels.py", "kernels.py.j2"
    else:
        yield "CMakeLists.txt", "CMakeLists.txt.j2"


def alias_header(name: str, alias: str) -> str:
    """The alias header of a built-in backend, to be changed where a vendor's words are others."""
    text = files("spikingbrain_hal.backends").joinpath(alias, "vendor.h").read_text(encoding="utf-8")
    code = text[text.index("#pragma once") :]
    return (
        f"// {name}'s words for what the GPU kernels use, begun as those of the {alias} backend. Another wavefront,\n"
        f"// other names of the runtime or of matrix instructions are changed here and nowhere else.\n{code}"
    )


def _check(name: str, style: str, folder: Path, device_type: str | None) -> Style:
    if not re.fullmatch("[a-z]([a-z0-9_]*[a-z0-9])?", name):
        raise ValueError(
            f"NAME is {name!r}, expected a lower-case letter and then lower-case letters, digits and underscores, "
            "with no underscore at the end"
        )
    taken = (*installed_backends(), REFERENCE)
    if name in taken:
        raise ValueError(f"NAME is {name!r}, which is taken; installed are {', '.join(taken)}")
    if style not in STYLES:
        raise ValueError(f"--style is {style!r}, expected one of {', '.join(STYLES)}")
    accepted = STYLES[style].device_types
    if device_type not in (None, *accepted):
        raise ValueError(f"--device-type is {device_type!r}, expected {' or '.join(accepted)} for style {style}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out is {str(folder)!r}, expected a folder that is empty or not there")
    return STYLES[style]
