"""What the commands that run a checkpoint share: opening it, and saying why it cannot be opened."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from ..errors import BackendUnavailable, UnsupportedOp
from ..selection import use_backend

ModelArgument = Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on the Hugging Face hub.")]
BackendOption = Annotated[str | None, typer.Option(help="This backend or an error; the device's own if absent.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="The torch device.")]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Checkpoint:
    """A model that is ready to run, and its tokenizer."""

    model: Any
    tokenizer: Any

    def encode(self, text: str, name: str) -> torch.Tensor:
        """The tokens of a text, [1, T], int64, on the model's device.

        Raises:
            ValueError: There is none.
        """
        tokens: torch.Tensor = self.tokenizer(text, return_tensors="pt").input_ids
        if tokens.shape[1] == 0:
            raise ValueError(f"{name} has no tokens, expected at least one")
        return tokens.to(self.model.device, torch.int64)


@contextmanager
def refusals(console: Console) -> Iterator[None]:
    """Turns what a wrong argument raises into one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, BackendUnavailable, UnsupportedOp) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from error


def select(backend: str | None) -> None:
    """Selects a backend for the rest of the process, strictly; leaves the choice as it is if there is no name."""
    if backend:
        use_backend(backend)


def open_checkpoint(console: Console, model: str, dtype: str, device: str) -> Checkpoint:
    """Loads a checkpoint and says how large it is.

    Args:
        console: Where progress goes.
        model: A folder, or a name on the Hugging Face hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``, or ``auto`` for what the checkpoint holds.
        device: A torch device.

    Raises:
        ValueError: An argument is wrong, or there is no such checkpoint.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

    from .. import models  # noqa: F401 - registers the model type

    keyword = "torch_dtype" if __version__.startswith("4.") else "dtype"
    started = time.perf_counter()
    with console.status(f"loading {model}"):
        network = AutoModelForCausalLM.from_pretrained(model, **{keyword: DTYPES.get(dtype, "auto")})
        network = network.to(device).eval()
    held = [*network.parameters(), *network.buffers()]
    size = sum(t.nbytes for t in held)
    console.print(
        f"loaded {Path(model).name}: {sum(t.numel() for t in held):,} numbers, {size / 2**30:.2f} GiB, "
        f"in {time.perf_counter() - started:.1f} s"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{model} has no tokenizer that transformers can read: {error}") from error
    return Checkpoint(network, tokenizer)


def read_text(given: str) -> str:
    """A text from the command line, ``-`` for standard input."""
    return sys.stdin.read() if given == "-" else given
