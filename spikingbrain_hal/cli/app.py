"""The commands, one module each."""

import typer

from .conformance import conformance
from .doctor import doctor
from .generate import generate
from .inspect import inspect
from .new_backend import new_backend
from .ops import ops
from .pack import pack
from .report import report
from .spikes import spikes

app = typer.Typer(
    name="sbhal",
    help="Operators for spiking and linear-attention models: prove a backend, explain a choice, run a checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (conformance, doctor, generate, inspect, new_backend, ops, pack, spikes):
    app.command()(command)
app.add_typer(report, name="report")
