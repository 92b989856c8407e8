"""Train a small SpikingBrain on real text, then read a long document with it.

    python examples/read_text.py

A byte-level model of SpikingBrain-7B's shape (linear and windowed attention in turn, spiking MLPs) learns the sources
of Python's standard library for two minutes, reads 200 kB that it has not seen with a state of constant size, and
writes on from there. Needs ``pip install spikingbrain-hal[examples]``.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from reading import measure, report
from reading.text import load
from reading.train import Training, held_out_loss, train
from reading.transformer import Transformer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from spikingbrain_hal.nn import SpikingBrain, SpikingBrainConfig

console = Console()


@dataclass(frozen=True)
class Plan:
    """How large everything is.

    Args:
        model: Sizes of the model.
        batch: Windows of text in a training step.
        context: Bytes in a window.
        learning_rate: Its highest value.
        max_steps: Training steps at most, if not limited by time alone.
        chunk: Bytes that the document is read by.
        lengths: Where speed and state are measured; the last is the length of the document.
        first_token: Lengths at which the time to the first token is measured.
        first_token_budget: Longest that one run of the Transformer may take, in seconds.
        decode_steps: Tokens decoded at each length in each of three rounds.
        sample: Bytes to write.
    """

    model: SpikingBrainConfig = field(default_factory=SpikingBrainConfig)
    batch: int = 1
    context: int = 512
    learning_rate: float = 1.5e-3
    max_steps: int | None = None
    chunk: int = 1000
    lengths: tuple[int, ...] = (1000, 4000, 16_000, 64_000, 200_000)
    first_token: tuple[int, ...] = (1000, 4000, 16_000, 32_000)
    first_token_budget: float = 30.0
    decode_steps: int = 100
    sample: int = 600


QUICK = Plan(
    model=SpikingBrainConfig(hidden_size=32, layers=2, query_heads=2, kv_heads=1, head_dim=16, mlp_size=48, window=32),
    batch=2,
    context=64,
    learning_rate=1e-2,
    max_steps=20,
    chunk=64,
    lengths=(64, 256),
    first_token=(64, 128),
    decode_steps=3,
    sample=20,
)


def bar(description: str) -> Progress:
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    progress = Progress(TextColumn(f"{description:24}"), *columns, console=console)
    progress.add_task("", total=1.0, note="")
    return progress


def run(plan: Plan, seconds: float, seed: int) -> dict[str, Any]:
    """Trains, reads, writes and measures; returns all results."""
    torch.manual_seed(seed)
    corpus = load(max(plan.lengths) + 1, seed)
    model = SpikingBrain(plan.model)
    with bar("training") as progress:

        def tell(done: float, loss: float) -> None:
            progress.update(progress.task_ids[0], completed=min(done, 1.0), note=f"{loss:.2f} bits/byte")

        trained = train(
            model, corpus, plan.batch, plan.context, plan.learning_rate, seconds, plan.max_steps, seed, tell
        )
    results: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "config": asdict(plan.model),
        "files": {"train": corpus.files[0], "held_out": corpus.files[1]},
        "train": {
            "tokens": trained.tokens,
            "seconds": trained.seconds[-1],
            "curve": trained.loss,
            "curve_seconds": trained.seconds,
        },
        "loss": {
            "unigram_entropy": corpus.unigram_entropy(),
            "first": trained.loss[0],
            "last": _last(trained),
            "held_out": held_out_loss(model, corpus.held_out, plan.context, windows=32),
        },
    }
    document = corpus.held_out[: max(plan.lengths)].long()
    return results | _read_and_measure(plan, model, document, seed)


def _last(trained: Training) -> float:
    tail = trained.loss[-max(1, len(trained.loss) // 20) :]
    return sum(tail) / len(tail)


def _read_and_measure(plan: Plan, model: SpikingBrain, document: torch.Tensor, seed: int) -> dict[str, Any]:
    with bar("reading the document") as progress:

        def tell(read: int) -> None:
            progress.update(progress.task_ids[0], completed=read / len(document), note=f"{read:,} bytes")

        reading = measure.read(model, document, list(plan.lengths), plan.chunk, tell)
    writer = model.generate(reading.logits, reading.states[len(document)].clone(), 0.6, seed)
    written = bytes(int(next(writer)) for _ in range(plan.sample))
    with console.status("decoding after each length"):
        decode = measure.decode(model, reading.states, plan.decode_steps)
    transformer = Transformer(plan.model)
    with bar("first token, two models") as progress:

        def tell_first(length: int) -> None:
            done = sum(n for n in plan.first_token if n <= length) / sum(plan.first_token)
            progress.update(progress.task_ids[0], completed=done, note=f"{length:,} bytes")

        first = measure.first_token(
            model, transformer, document, list(plan.first_token), plan.first_token_budget, tell_first
        )
    cache = sum(t.nbytes for t in transformer.prefill(document[None, : plan.chunk])[1])
    return {
        "prefill_tokens_per_second": reading.tokens_per_second,
        "prefill_seconds": reading.seconds,
        "state_bytes": {length: state.nbytes for length, state in reading.states.items()},
        "decode": decode,
        "spikes": measure.spikes(model, document[-4096:]),
        "first_token_seconds": first,
        "transformer": {
            "parameters": sum(p.numel() for p in transformer.parameters()),
            "cache_bytes_per_token": cache / min(plan.chunk, len(document)),
        },
        "sample": written.decode(errors="replace"),
    }


def main(
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder for results.json and read_text.png.")] = Path("out/read_text"),
    seed: Annotated[int, typer.Option(help="Of the weights, the batches and the choice of files.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    quick: Annotated[bool, typer.Option(help="Everything tiny, for a test.")] = False,
) -> None:
    """Train a small SpikingBrain on Python's own sources, and read a long document with it."""
    begin = time.perf_counter()
    if threads:
        torch.set_num_threads(threads)
    results = run(QUICK if quick else Plan(), 60 * minutes, seed)
    results["seconds"] = time.perf_counter() - begin
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    report.figure(results, out / "read_text.png")
    report.tables(results, console)
    console.print(f"{results['seconds']:.0f} s; {out / 'results.json'}, {out / 'read_text.png'}")


if __name__ == "__main__":
    typer.run(main)
