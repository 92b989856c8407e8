"""The commands, one module each."""

import typer

from .conformance import conformance
from .doctor import doctor
from .ops import ops

app = typer.Typer(
    name="sbhal",
    help="Operators for spiking and linear-attention models: prove a backend, explain a choice, list what there is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(conformance)
app.command()(doctor)
app.command()(ops)
