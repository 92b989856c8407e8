"""The example's results as a table on the terminal and as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BLUE, ORANGE, GREEN, GREY, LIGHT = "#1f5fa8", "#d9730d", "#3c8d5a", "#6b7280", "#a9c4e6"


def short(n: int) -> str:
    """A length in bytes: 16000 is "16k"."""
    return f"{n / 1000:g}k" if n >= 1000 else str(n)


def tables(r: dict[str, Any], console: Console) -> None:
    """Prints the results."""
    console.print(_summary(r), _by_length(r), _first_tokens(r))
    console.print(Panel(Text(r["sample"]), title="written after the document", title_align="left"))


def _summary(r: dict[str, Any]) -> Table:
    loss, spikes, decode = r["loss"], r["spikes"], r["decode"]
    t = Table(title="A small SpikingBrain that reads Python's library", show_header=False)
    t.add_column(justify="left")
    t.add_column(justify="right")
    t.add_row("parameters", f"{r['parameters']:,}")
    t.add_row("CPU threads", str(r["threads"]))
    t.add_row("trained on", f"{r['train']['tokens']:,} bytes in {r['train']['seconds']:.0f} s")
    t.add_row("entropy of single bytes", f"{loss['unigram_entropy']:.2f} bits/byte")
    t.add_row("loss at the first step", f"{loss['first']:.2f} bits/byte")
    t.add_row("loss over the last steps", f"{loss['last']:.2f} bits/byte")
    t.add_row("loss on held-out files", f"{loss['held_out']:.2f} bits/byte", end_section=True)
    ends = f"{short(max(r['state_bytes']))} over {short(min(r['state_bytes']))}"
    for part, title in (("linear_layers", "linear layers"), ("model", "whole model")):
        ratio = decode[part]["speed_at_longest_over_shortest"]
        t.add_row(f"decode speed at {ends}, {title}", f"{ratio:.3f}", end_section=part == "model")
    t.add_row("spike counts that are zero", f"{spikes['zero_counts']:.1%}")
    t.add_row("empty slots of three-bit spike trains", f"{spikes['zero_slots']:.1%}")
    t.add_row("spikes of a channel, bitwise train", f"{spikes['spikes_per_channel']:.2f}")
    return t


def _by_length(r: dict[str, Any]) -> Table:
    t = Table(title="Speed and state by bytes read")
    for name in ("bytes read", "prefill /s", "decode /s", "linear layers alone /s", "state, bytes"):
        t.add_column(name, justify="right")
    for n, state in r["state_bytes"].items():
        rates = [r["decode"][part]["tokens_per_second"][n] for part in ("model", "linear_layers")]
        speeds = (r["prefill_tokens_per_second"][n], *rates)
        t.add_row(f"{n:,}", *(f"{speed:,.0f}" for speed in speeds), f"{state:,}")
    return t


def _first_tokens(r: dict[str, Any]) -> Table:
    t = Table(
        title=f"Seconds to the first token, beside a Transformer of {r['transformer']['parameters']:,} parameters"
    )
    for name in ("bytes read", "SpikingBrain", "Transformer", "ratio"):
        t.add_column(name, justify="right")
    for n, ours in r["first_token_seconds"]["spikingbrain"].items():
        theirs = r["first_token_seconds"]["transformer"].get(n)
        beside = (f"{theirs:.3f}", f"{theirs / ours:.2f}") if theirs else ("not run: too slow", "")
        t.add_row(f"{n:,}", f"{ours:.3f}", *beside)
    return t


def figure(r: dict[str, Any], path: Path) -> None:
    """Draws the results as one picture."""
    plt.rcParams.update({"font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold"})
    fig = plt.figure(figsize=(13, 7.6), layout="constrained")
    grid = fig.add_gridspec(2, 6)
    _loss(fig.add_subplot(grid[0, :3]), r)
    _speed(fig.add_subplot(grid[0, 3:]), r)
    _first_token(fig.add_subplot(grid[1, :2]), r)
    _memory(fig.add_subplot(grid[1, 2:4]), r)
    _spikes(fig.add_subplot(grid[1, 4:]), r)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def _plain(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", pad=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    ax.set_axisbelow(True)


def _lengths(ax: Axes, lengths: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(lengths, [short(n) for n in lengths])


def _logarithmic(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _loss(ax: Axes, r: dict[str, Any]) -> None:
    curve, seconds, loss = r["train"]["curve"], r["train"]["curve_seconds"], r["loss"]
    width = max(1, len(curve) // 50)
    smooth = [sum(curve[max(0, i - width) : i + 1]) / len(curve[max(0, i - width) : i + 1]) for i in range(len(curve))]
    ax.plot(seconds, curve, color=LIGHT, linewidth=0.8)
    ax.plot(seconds, smooth, color=BLUE, linewidth=2)
    entropy = loss["unigram_entropy"]
    ax.axhline(entropy, color=GREY, linestyle="--", linewidth=1.2)
    ax.annotate(f"entropy of single bytes {entropy:.2f}", (seconds[-1], entropy), ha="right", va="bottom", color=GREY)
    ax.plot(seconds[-1], loss["held_out"], "o", color=ORANGE)
    note = f"held-out files {loss['held_out']:.2f}"
    ax.annotate(note, (seconds[-1], loss["held_out"]), (-8, 12), textcoords="offset points", ha="right", color=ORANGE)
    _plain(ax, "Learns to read Python's library", "seconds of training", "bits per byte")
    ax.set_ylim(0, max(curve) * 1.05)
    ax.set_xlim(left=0)


def _speed(ax: Axes, r: dict[str, Any]) -> None:
    lengths = list(r["prefill_tokens_per_second"])
    lines = {
        "prefill": (list(r["prefill_tokens_per_second"].values()), BLUE),
        "decode, linear layers alone": (list(r["decode"]["linear_layers"]["tokens_per_second"].values()), GREEN),
        "decode": (list(r["decode"]["model"]["tokens_per_second"].values()), ORANGE),
    }
    for name, (rates, colour) in lines.items():
        ax.plot(lengths, rates, "o-", color=colour, linewidth=2, label=name)
    _plain(ax, "Reading and writing speed", "bytes read before", "tokens per second")
    _lengths(ax, lengths)
    _logarithmic(ax)
    every = [rate for rates, _ in lines.values() for rate in rates]
    ax.set_ylim(min(every) / 2, max(every) * 6)
    ax.legend(frameon=False, loc="upper left", ncols=3)


def _first_token(ax: Axes, r: dict[str, Any]) -> None:
    names = {"spikingbrain": ("SpikingBrain", BLUE), "transformer": ("Transformer", ORANGE)}
    for key, (name, colour) in names.items():
        times = r["first_token_seconds"][key]
        ax.plot(list(times), list(times.values()), "o-", color=colour, linewidth=2, label=name)
    _plain(ax, "Time to the first token", "bytes read", "seconds")
    _lengths(ax, list(r["first_token_seconds"]["spikingbrain"]))
    _logarithmic(ax)
    ax.legend(frameon=False, loc="upper left")


def _memory(ax: Axes, r: dict[str, Any]) -> None:
    lengths = list(r["state_bytes"])
    ours = [r["state_bytes"][n] / 2**20 for n in lengths]
    theirs = [n * r["transformer"]["cache_bytes_per_token"] / 2**20 for n in lengths]
    ax.plot(lengths, ours, "o-", color=BLUE, linewidth=2, label=f"SpikingBrain, {ours[0]:.2f} MiB")
    ax.plot(lengths, theirs, "o-", color=ORANGE, linewidth=2, label="Transformer's cache")
    _plain(ax, "Memory carried along", "bytes read", "MiB")
    _lengths(ax, lengths)
    _logarithmic(ax)
    ax.legend(frameon=False, loc="upper left")


def _spikes(ax: Axes, r: dict[str, Any]) -> None:
    s = r["spikes"]
    counts = list(s["histogram"])
    ax.bar(counts, [100 * share for share in s["histogram"].values()], color=[BLUE if n else ORANGE for n in counts])
    ax.annotate(
        f"{s['zero_counts']:.0%} silent\n{s['zero_slots']:.0%} of three-bit slots empty\n"
        f"{s['spikes_per_channel']:.2f} spikes per channel",
        (0.98, 0.97),
        xycoords="axes fraction",
        ha="right",
        va="top",
        color=GREY,
        fontsize=9.5,
    )
    _plain(ax, "Spikes of a channel", "signed count", "share of channels, %")
    ax.set_ylim(top=ax.get_ylim()[1] * 1.25)
