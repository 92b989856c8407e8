"""What the commands that run a checkpoint share: their options, and opening it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from ..calls.selection import use_backend
from ..checkpoint.folder import read_object

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


def select(backend: str | None) -> None:
    """Selects a backend for the rest of the process, strictly; leaves the choice as it is if there is no name."""
    if backend:
        use_backend(backend)


def present_device(name: str) -> torch.device:
    """The device of a name, where a tensor can be.

    Raises:
        ValueError: There is no such device in this process.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device is {name!r}, which is not there: {str(error).splitlines()[0]}") from error
    return device


def open_checkpoint(console: Console, model: str, dtype: str, device: str) -> Checkpoint:
    """Loads a checkpoint and says how large it is; never runs code that comes with it.

    Args:
        console: Where progress goes.
        model: A folder, or a name on the Hugging Face hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``, or ``auto`` for what the checkpoint holds.
        device: A torch device.

    Raises:
        ValueError: An argument is wrong, there is no such checkpoint, or it does not hold what it says.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    place = present_device(device)
    from transformers import __version__

    from ..models import GLAswaForCausalLM
    from ..models.loading import checkpoint_folder

    keyword = "torch_dtype" if __version__.startswith("4.") else "dtype"
    started = time.perf_counter()
    with console.status(f"loading {escape(model)}"):
        folder = checkpoint_folder(model)
        options: dict[str, Any] = {keyword: DTYPES.get(dtype, "auto"), "output_loading_info": True}
        network, info = GLAswaForCausalLM.from_pretrained(folder, **options)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{folder} lacks {missing[0]} and {len(missing) - 1} other tensors of the model")
        network = network.to(place).eval()
    held = [*network.parameters(), *network.buffers()]
    size = sum(t.nbytes for t in held)
    console.print(
        f"loaded {escape(Path(model).name)}: {sum(t.numel() for t in held):,} numbers, {size / 2**30:.2f} GiB, "
        f"in {time.perf_counter() - started:.1f} s"
    )
    return Checkpoint(network, _tokenizer(folder))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    settings = folder / "tokenizer_config.json"
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file breaks in transformers and tokenizers
        if settings.is_file() and "auto_map" in read_object(settings):
            raise ValueError(
                f"{settings} names code of its own, auto_map, and code of a checkpoint is never run"
            ) from error
        raise ValueError(f"{folder} has no tokenizer that transformers can read: {error}") from error


def read_text(given: str) -> str:
    """A text from the command line, ``-`` for standard input.

    Raises:
        ValueError: Standard input is closed, or no text.
    """
    if given != "-":
        return given
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    return sys.stdin.read()
