"""``sbhal spikes``: how sparse the spikes of a checkpoint are while it reads a text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..nn import SpikeLinear, SpikeStatistics, encode_spikes
from .checkpoint import BackendOption, DeviceOption, DtypeOption, ModelArgument, open_checkpoint, select
from .refusals import refusals

PLACES = {
    "attention input": "attn.q_proj",
    "attention output": "attn.o_proj",
    "MLP input": "mlp.gate_proj",
    "MLP inside": "mlp.down_proj",
}
NAMES = {
    "zero_slots": "empty slots of three bits",
    "spikes_per_channel": "spikes a channel",
    "zero_counts": "silent channels",
    "within_three_bits": "counts within three bits",
}
Measured = dict[tuple[str, int], list[tuple[SpikeStatistics, int]]]


def spikes(
    model: ModelArgument,
    text: Annotated[Path, typer.Option(help="The text to read.", exists=True, dir_okay=False)],
    max_tokens: Annotated[int, typer.Option(min=1, help="How much of the text is read.")] = 4096,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens read at a time.")] = 512,
    out: Annotated[Path, typer.Option(help="Folder for spikes.json and spikes.png.")] = Path("out/spikes"),
    backend: BackendOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
) -> None:
    """Measure sparsity, set bits and silent channels of what a checkpoint's projections read.

    A W8ASpike or packed model is measured where it spikes. The activations of any other are coded for the measure only.
    Exits with 2 where the checkpoint, the backend or an argument is no good.
    """
    console = Console()
    with refusals():
        import_plot()
        out.mkdir(parents=True, exist_ok=True)  # before anything is read, which takes long
        select(backend)
        checkpoint = open_checkpoint(console, model, dtype, device)
        tokens = checkpoint.encode(_text(text), "text")[:, :max_tokens]
        measured = _measure(console, checkpoint.model, tokens, chunk)
        found = {key: SpikeStatistics.mean(parts) for key, parts in measured.items()}
        total = SpikeStatistics.mean([part for parts in measured.values() for part in parts])
        _show(console, measured, total, tokens.shape[1])
        _write(out, found, total, tokens.shape[1])
    console.print(f"json: {out / 'spikes.json'}\nplot: {out / 'spikes.png'}", soft_wrap=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


def import_plot() -> Any:
    """matplotlib.pyplot, drawing to files.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('sbhal spikes needs matplotlib: pip install "spikingbrain-hal[examples]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _measure(console: Console, model: Any, tokens: torch.Tensor, chunk: int) -> Measured:
    from ..models import GLAswaCache

    found: Measured = {}
    cache = GLAswaCache()
    with torch.no_grad(), _watched(model, found), console.status("reading") as status:
        for start in range(0, tokens.shape[1], chunk):
            status.update(f"reading, {start:,} of {tokens.shape[1]:,} tokens")
            model(tokens[:, start : start + chunk], past_key_values=cache, use_cache=True, logits_to_keep=1)
    if not found:
        raise ValueError("nothing was measured: no projection of this model reads spikes")
    return found


@contextmanager
def _watched(model: Any, found: Measured) -> Iterator[None]:
    """Has every place write the statistics of what it reads to ``found``."""
    hooks = []
    for index, layer in enumerate(model.model.layers):
        modules = dict(layer.named_modules())
        for place, name in PLACES.items():
            module = modules.get(name)
            if module is None or (model.config.w8aspike and not isinstance(module, SpikeLinear)):
                continue  # experts are no modules, and a W8ASpike model's down projections may not spike
            found[place, index] = []
            note = partial(_note, found[place, index], getattr(module, "k", model.config.spike_k))
            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _note(parts: list[tuple[SpikeStatistics, int]], k: float, module: Any, inputs: tuple[Any, ...]) -> None:
    (read,) = inputs
    counts = (encode_spikes(read, k) if isinstance(read, torch.Tensor) else read).counts
    parts.append((SpikeStatistics.of(counts), counts.numel()))


def _show(console: Console, measured: Measured, total: SpikeStatistics, tokens: int) -> None:
    table = Table("what reads", *NAMES.values(), title=f"Spikes over {tokens:,} tokens", title_justify="left")
    for place in PLACES:
        parts = [part for (at, _), parts in measured.items() if at == place for part in parts]
        if parts:
            table.add_row(place, *_cells(SpikeStatistics.mean(parts)))
    table.add_row("all", *_cells(total))
    console.print(table)


def _cells(statistics: SpikeStatistics) -> list[str]:
    return [
        f"{getattr(statistics, name):.3f}" if name == "spikes_per_channel" else f"{getattr(statistics, name):.1%}"
        for name in NAMES
    ]


def _write(out: Path, found: Mapping[tuple[str, int], SpikeStatistics], total: SpikeStatistics, tokens: int) -> None:
    layers = [{"place": place, "layer": layer, **asdict(s)} for (place, layer), s in sorted(found.items())]
    (out / "spikes.json").write_text(json.dumps({"tokens": tokens, "all": asdict(total), "layers": layers}, indent=1))
    plt = import_plot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    for axis, name in zip(axes, list(NAMES)[:3], strict=True):
        for place in PLACES:
            points = sorted((layer, getattr(s, name)) for (at, layer), s in found.items() if at == place)
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=place)
        axis.set(xlabel="layer", title=NAMES[name])
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(out / "spikes.png", dpi=130)
    plt.close(figure)
