"""Real text that every Python installation carries: the sources of the standard library."""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# tests repeat themselves; the other two folders are tables of character codes and of help pages
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Corpus:
    """The bytes to train on and, from other files, the bytes to read.

    Args:
        train: [N], uint8.
        held_out: [M], uint8: whole files that ``train`` has nothing of.
        files: How many files each of the two has.
    """

    train: Tensor
    held_out: Tensor
    files: tuple[int, int]

    def batch(self, size: int, context: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws training inputs and the bytes that follow each, [size, context] int64 both."""
        starts = torch.randint(len(self.train) - context, (size,), generator=source)
        windows = self.train[starts[:, None] + torch.arange(context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def unigram_entropy(self) -> float:
        """Bits per byte that a code of single bytes needs: what a model must beat."""
        share = torch.bincount(self.train.int(), minlength=256).double() / len(self.train)
        return float(-(share * share.clamp_min(1e-300).log2()).sum())


def load(held_out_bytes: int, seed: int) -> Corpus:
    """Reads the library's sources and holds out whole files, drawn at random.

    Raises:
        FileNotFoundError: This installation has too few ``.py`` files of the standard library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts))
    random.Random(seed).shuffle(paths)
    texts = [path.read_bytes() for path in paths]
    first, size = 0, 0
    while size < held_out_bytes and first < len(texts):
        size += len(texts[first])
        first += 1
    if sum(map(len, texts[first:])) < held_out_bytes:
        raise FileNotFoundError(f"{root} has {sum(map(len, texts))} bytes of sources, too few to train on")
    held_out, train = texts[:first], texts[first:]
    return Corpus(_tensor(train), _tensor(held_out), (len(train), len(held_out)))


def _tensor(texts: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join(texts)), dtype=torch.uint8)
