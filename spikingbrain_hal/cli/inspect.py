"""``sbhal inspect``: what a checkpoint is, what it needs, and what a backend covers of that."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..calls.selection import current
from ..checkpoint import Stored
from ..checkpoint.tensors import NAMES
from .checkpoint import BackendOption, ModelArgument, select
from .doctor import served_by
from .refusals import refusals


def inspect(
    model: ModelArgument,
    backend: BackendOption = None,
    device: Annotated[str, typer.Option(help="The torch device type, where no backend is named.")] = "cpu",
) -> None:
    """Say what a checkpoint holds, how large its state is, and operator by operator who would run it.

    Reads the headers of its files only; one that is on the hub is fetched first. Exits with 1 where an operator would
    be refused, with 2 where there is no checkpoint that can be loaded or the backend cannot be used.
    """
    console = Console()
    with refusals():
        from ..models import GLAswaForCausalLM
        from ..models.loading import checkpoint_folder, open_checkpoint

        select(backend)
        active = current(_device_type(device))
        config, tensors = open_checkpoint(checkpoint_folder(model), GLAswaForCausalLM)
        state = State.of(config)
    _show_contents(console, Path(model).name, config, tensors)
    _show_state(console, state)
    console.print(f"\noperators on [bold]{active.name}[/]: {escape(active.reason)}")
    table = Table("operator", "for", "runs as", "why")
    rows = [(op, use, *served_by(active, op)) for op, use in _needs(config, state).items()]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if any(runs == "error" for _, _, runs, _ in rows):
        raise typer.Exit(1)


def _device_type(name: str) -> str:
    try:
        return torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, expected a torch device: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class State:
    """What the layers of a model carry for one sequence of 16-bit activations.

    Attributes:
        memories: Layers with a memory.
        windows: Layers with keys and values of a window.
        full: Layers with keys and values of all tokens.
        memory_bytes: Of the memories.
        memory_dtype: Theirs.
        window_bytes: Of the windows, once they are full.
        token_bytes: By which the layers with all tokens grow with each.
    """

    memories: int
    windows: int
    full: int
    memory_bytes: int
    memory_dtype: torch.dtype
    window_bytes: int
    token_bytes: int

    @classmethod
    def of(cls, config: Any) -> State:
        """That of a model, which is built without memory for it."""
        from ..models import GLAswaModel

        with torch.device("meta"):
            attentions: list[Any] = [layer.attn for layer in GLAswaModel(copy.deepcopy(config)).layers]
            states = [(attn, attn.initial_state(1, torch.empty(0, dtype=torch.bfloat16))) for attn in attentions]
        memories = [state.linear for _, state in states if state.linear is not None]
        windows = [state.ring for attn, state in states if state.ring is not None and not attn.is_full]
        full = [state.ring for attn, state in states if attn.is_full]  # with room for one token
        dtype = memories[0].memory.dtype if memories else torch.float32
        sizes = [sum(x.nbytes for x in part) for part in (memories, windows, full)]
        return cls(len(memories), len(windows), len(full), sizes[0], dtype, sizes[1], sizes[2])


def _show_contents(console: Console, title: str, config: Any, tensors: Mapping[str, Stored]) -> None:
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    kinds = Counter[str]()
    for name, tensor in tensors.items():
        kinds[NAMES[tensor.dtype]] += sizes[name]
    spiking = "W8ASpike, packed integers" if any(name.endswith(".codes") for name in tensors) else "W8ASpike"
    console.print(f"[bold]{escape(title)}[/]: {config.model_type}, {spiking if config.w8aspike else 'plain'}")
    console.print(
        f"{sum(sizes.values()):,} numbers in {len(tensors)} tensors: "
        + ", ".join(f"{count:,} {dtype}" for dtype, count in kinds.most_common())
    )
    console.print(
        f"{config.num_hidden_layers} layers of {config.hidden_size} channels, {config.num_attention_heads} query heads "
        f"on {config.num_key_value_heads} key/value heads of {config.head_dim} channels"
    )


def _show_state(console: Console, state: State) -> None:
    bits = 8 * state.memory_dtype.itemsize
    console.print(
        f"state of a sequence: {state.memory_bytes / 2**20:,.1f} MiB in {state.memories} memories of {bits} bits, "
        f"{state.window_bytes / 2**20:,.1f} MiB in {state.windows} windows of 16 bits"
        + (f", and {state.token_bytes / 2**10:,.1f} KiB a token in {state.full} with all keys" if state.full else "")
    )


def _needs(config: Any, state: State) -> dict[str, str]:
    needs = {}
    if state.memories:
        needs["gated_linear_attention"] = f"prefill and training of {state.memories} layers"
        needs["gated_linear_attention_step_"] = f"decode of {state.memories} layers"
    if state.windows + state.full:
        seen = f"{state.windows} layers with a window of {config.sliding_window + 1:,} keys"
        needs["attention"] = seen + (f", {state.full} with all" if state.full else "")
    if config.w8aspike:
        needs["spike_encode"] = "what the projections read, and the queries of windowed layers"
        needs["spike_linear"] = "the projections"
    return needs
