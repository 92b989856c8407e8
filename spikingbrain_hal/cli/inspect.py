"""``sbhal inspect``: what a checkpoint is, what it needs, and what a backend covers of that."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..selection import current
from .checkpoint import BackendOption, refusals, select
from .doctor import served_by


def inspect(
    model: Annotated[Path, typer.Argument(help="Folder of a checkpoint.", exists=True, file_okay=False)],
    backend: BackendOption = None,
    device: Annotated[str, typer.Option(help="The torch device type, where no backend is named.")] = "cpu",
) -> None:
    """Say what a checkpoint holds, how large its state is, and operator by operator who would run it.

    Reads the headers of its files only. Exits with 1 where an operator would be refused, with 2 where the folder is no
    checkpoint that can be loaded or the backend cannot be used.
    """
    console = Console()
    with refusals(console):
        select(backend)
        config, tensors = _read(model)
        active = current(device)
        _show_contents(console, model, config, tensors)
        _show_state(console, config)
    console.print(f"\noperators on [bold]{active.name}[/]: {escape(active.reason)}")
    table = Table("operator", "for", "runs as", "why")
    rows = [(op, use, *served_by(active, op)) for op, use in _needs(config).items()]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if any(runs == "error" for _, _, runs, _ in rows):
        raise typer.Exit(1)


def _read(folder: Path) -> tuple[Any, dict[str, tuple[list[int], str]]]:
    """The configuration, and shape and dtype of every tensor on disk."""
    from safetensors import safe_open
    from transformers import AutoConfig

    from ..models import GLAswaConfig
    from ..models.loading import checkpoint_config, tensor_files

    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, GLAswaConfig):
        raise ValueError(f"{folder} is a {config.model_type} model, expected {GLAswaConfig.model_type}")
    files = tensor_files(folder)
    tensors = {}
    for path in sorted(set(files.values())):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                tensors[name] = (part.get_shape(), part.get_dtype())
    return checkpoint_config(config, files), tensors


def _show_contents(console: Console, folder: Path, config: Any, tensors: dict[str, tuple[list[int], str]]) -> None:
    sizes = {name: math.prod(shape) for name, (shape, _) in tensors.items()}
    kinds = Counter[str]()
    for name, (_, dtype) in tensors.items():
        kinds[dtype] += sizes[name]
    spiking = "W8ASpike, packed integers" if any(name.endswith(".codes") for name in tensors) else "W8ASpike"
    console.print(f"[bold]{escape(folder.name)}[/]: {config.model_type}, {spiking if config.w8aspike else 'plain'}")
    console.print(
        f"{sum(sizes.values()):,} numbers in {len(tensors)} tensors: "
        + ", ".join(f"{count:,} {dtype}" for dtype, count in kinds.most_common())
    )
    console.print(
        f"{config.num_hidden_layers} layers of {config.hidden_size} channels, {config.num_attention_heads} query heads "
        f"on {config.num_key_value_heads} key/value heads of {config.head_dim} channels"
    )


def _layers(config: Any) -> tuple[int, int, int]:
    """How many layers have a memory, a window of keys, and all keys."""
    layers, full = config.num_hidden_layers, len(config.full_attn_layers)
    if config.parallel_attention:
        return layers, layers - full, full
    return layers - len(config.attn_layers), len(config.attn_layers), 0


def _show_state(console: Console, config: Any) -> None:
    linear, windowed, full = _layers(config)
    head = config.num_key_value_heads * config.head_dim
    memory = linear * head * config.head_dim * 4
    keys = 2 * head * 2  # a key and a value in 16 bits
    ring = windowed * (config.sliding_window + 1) * keys
    console.print(
        f"state of a sequence, at 16 bits: {memory / 2**20:,.1f} MiB in {linear} memories, "
        f"{ring / 2**20:,.1f} MiB in {windowed} windows"
        + (f", and {full * keys / 2**10:,.1f} KiB a token in {full} layers of full attention" if full else "")
    )


def _needs(config: Any) -> dict[str, str]:
    linear, windowed, full = _layers(config)
    needs = {}
    if linear:
        needs["gated_linear_attention"] = f"prefill and training of {linear} layers"
        needs["gated_linear_attention_step_"] = f"decode of {linear} layers"
    if windowed + full:
        seen = f"{windowed} layers with a window of {config.sliding_window + 1:,} keys"
        needs["attention"] = seen + (f", {full} with all" if full else "")
    if config.w8aspike:
        needs["spike_encode"] = "what the projections read, and the queries of windowed layers"
        needs["spike_linear"] = "the projections"
    return needs
