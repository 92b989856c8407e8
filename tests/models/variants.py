"""The variants that the tests of the models run over, each with its independent reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import CONFIG, GROUP, PARALLEL, W8ASPIKE, random_tensors, write
from gla_swa_reference import Reference
from transformers import AutoModelForCausalLM, __version__

import spikingbrain_hal.models  # noqa: F401 - registers the model type

DTYPE = "torch_dtype" if __version__.startswith("4.") else "dtype"


def load(folder: Path, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{DTYPE: dtype}, **kwargs)


@dataclass
class Variant:
    """A checkpoint on disk and what it must compute."""

    name: str
    folder: Path
    reference: Reference

    def model(self, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
        return load(self.folder, dtype, **kwargs)

    def expected(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of each row alone, [B, T, vocab_size]."""
        return torch.stack([self.reference.logits(row.tolist()) for row in tokens])


def make(name: str, root: Path) -> Variant:
    """``7b``, ``76b`` or ``w8aspike`` at small size."""
    torch.manual_seed(20)
    config = {"7b": CONFIG, "76b": PARALLEL, "w8aspike": W8ASPIKE}[name]
    group = GROUP if name == "w8aspike" else None
    tensors = random_tensors(config, group)
    folder = write(root / name, config, tensors, shards=3 if group else 1)
    return Variant(name, folder, Reference(config, tensors))


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(2, CONFIG["vocab_size"], shape)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
