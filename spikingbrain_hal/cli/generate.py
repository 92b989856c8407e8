"""``sbhal generate``: continue a text with a checkpoint, on any backend."""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from .checkpoint import BackendOption, DeviceOption, DtypeOption, ModelArgument, open_checkpoint, read_text, select
from .refusals import finite, refusals


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="The text to continue; - reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, callback=finite, help="Divides the logits; 0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Samples among the likeliest tokens of this share.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Makes sampling repeatable.")] = None,
    backend: BackendOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Stream a continuation of a text to standard output, and its speed and state size to standard error.

    Exits with 2 where the checkpoint, the backend or an argument is no good.
    """
    console = Console(stderr=True)
    with refusals():
        select(backend)
        checkpoint = open_checkpoint(console, model, dtype, device)
        tokens = checkpoint.encode(read_text(prompt), "prompt")
        if seed is not None:
            torch.manual_seed(seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        _stream(console, checkpoint, tokens, max_new_tokens, sampling)


def _stream(console: Console, checkpoint: Any, tokens: torch.Tensor, most: int, sampling: dict[str, Any]) -> None:
    from transformers import TextStreamer

    from ..models import GLAswaCache

    class Timed(TextStreamer):
        """Notes when each token came; the first call brings the prompt."""

        def __init__(self) -> None:
            super().__init__(checkpoint.tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter())
            super().put(value)

    streamer, cache = Timed(), GLAswaCache()
    with torch.no_grad():
        checkpoint.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            streamer=streamer,
            max_new_tokens=most,
            **sampling,
        )
    start, first, *_ = times = streamer.times
    count, read = len(times) - 1, tokens.shape[1]
    console.print(f"read {read:,} tokens in {first - start:.2f} s, {read / (first - start):,.1f} tokens/s")
    if count > 1:
        seconds = times[-1] - first
        console.print(f"wrote {count:,} tokens, {(count - 1) / seconds:,.1f} tokens/s after the first")
    console.print(f"state: {cache.nbytes:,} bytes after {cache.columns:,} tokens")
