"""What lies beside the weights of a checkpoint and goes where they go: tokenizer, settings, chat templates, licence.

It goes by a list. An unknown file may be code or a pickle, and a name that is missing here is seen by whoever is told
what was left behind; one that is missing from a list of what to leave out is seen by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..untrusted import read_bytes
from .folder import CONFIG, LARGEST_TEXT, without_code

SUFFIXES = (".json", ".txt", ".model", ".spm", ".bpe", ".vocab", ".tiktoken", ".jinja", ".md")
NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
OTHERS = ("adapter_config.json", "packing.json", "trainer_state.json")  # of folders, not of tokenizers
TEMPLATES = "additional_chat_templates"  # the one folder that belongs to a tokenizer
PATTERNS = (*(f"*{suffix}" for suffix in SUFFIXES), *NAMES)


def beside_weights(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files that go along, as names relative to the folder, with their contents; those of settings without code.

    Args:
        folder: The folder of a checkpoint.

    Yields:
        Names and contents; not ``config.json``, which :func:`read_config` reads.

    Raises:
        ValueError: A file is too large to be what its name says.
        OSError: A file cannot be read.
    """
    for path in _files(folder):
        if _goes_along(path):
            yield path.relative_to(folder).as_posix(), _content(path)


def left_behind(folder: Path, weights: Iterable[Path]) -> list[str]:
    """The names of the files that do not go along: code, pickles, and what is not known; but for those of weights."""
    left = {path.name for path in _files(folder) if not _goes_along(path) and not path.name.endswith(".index.json")}
    return sorted(left - {path.name for path in weights})


def _files(folder: Path) -> list[Path]:
    found = (path for part in (folder, folder / TEMPLATES) if part.is_dir() for path in part.iterdir())
    return sorted(path for path in found if path.is_file() and not path.name.startswith(".") and path.name != CONFIG)


def _goes_along(path: Path) -> bool:
    if path.name in OTHERS or path.name.endswith(".index.json"):
        return False
    return path.suffix in SUFFIXES or path.name in NAMES


def _content(path: Path) -> bytes:
    content = read_bytes(path, LARGEST_TEXT)
    if path.suffix != ".json":
        return content
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content  # nobody can read code's name out of it
    if not isinstance(settings, dict) or (kept := without_code(settings)) == settings:
        return content
    return json.dumps(kept, indent=2, ensure_ascii=False).encode()
