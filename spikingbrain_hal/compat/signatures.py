"""Functions that take their arguments the way one version of a library does."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UnsupportedOp

Arguments = dict[str, Any]


class ArgumentOrder:
    """The parameters of one version of a function, in their order, with their defaults.

    Args:
        text: As in a ``def``, defaults as literals: ``"q, k, scale=None, *, chunk=64"``.
    """

    def __init__(self, text: str) -> None:
        positional = text.partition(", *, ")[0]
        parameters = []
        for part in text.replace(", *, ", ", ").split(", "):
            name, _, default = part.partition("=")
            value = ast.literal_eval(default) if default else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value))
        self.positional = [p.name for p in parameters][: positional.count(", ") + 1]
        for n in range(len(self.positional), len(parameters)):
            parameters[n] = parameters[n].replace(kind=inspect.Parameter.KEYWORD_ONLY)
        self.signature = inspect.Signature(parameters)
        self.names = [p.name for p in parameters]
        self.required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        self.defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    def bind(self, function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """The arguments of one call by name, absent ones left out.

        Raises:
            TypeError: Too many arguments, one that is unknown or given twice, or a required one is absent.
        """
        if len(args) > len(self.positional):
            raise TypeError(
                f"{function}: {len(args)} positional arguments given, at most {len(self.positional)} accepted"
            )
        given = dict(zip(self.positional, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.names:
                raise TypeError(f"{function}: no argument {name!r}; accepted: {', '.join(self.names)}")
            if name in given:
                raise TypeError(f"{function}: {name} is given twice")
            given[name] = value
        absent = [name for name in self.required if name not in given]
        if absent:
            raise TypeError(f"{function}: {', '.join(absent)} not given")
        return given


def adapted(
    name: str,
    library: str,
    order: str,
    body: Callable[[Arguments, Arguments], Any],
    aliases: Callable[[Arguments], Arguments] | None = None,
    doc: str = "",
) -> Callable[..., Any]:
    """A function with the parameters of one version of a library.

    Args:
        name: Its name.
        library: Library and version, for error messages.
        order: Its parameters, as :class:`ArgumentOrder` reads them.
        body: Does the work; takes all arguments by name, and those of them that the caller gave.
        aliases: Renames keyword arguments before they are bound.
        doc: Its docstring.
    """
    parameters = ArgumentOrder(order)
    title = f"{name} ({library})"

    def function(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(title, args, kwargs if aliases is None else aliases(kwargs))
        return body({**parameters.defaults, **given}, given)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc or body.__doc__
    function.__signature__ = parameters.signature  # type: ignore[attr-defined]
    return function


def absent(name: str, why: str) -> Callable[..., Any]:
    """A function that can be imported, and says why it can't be called."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedOp(f"{name}: {why}")

    function.__name__ = function.__qualname__ = name.rpartition(".")[2]
    function.__doc__ = f"Not available: {why}"
    return function


def refuse(function: str, **arguments: Any) -> None:
    """Refuses arguments that change the result in a way that no operator here computes.

    Args:
        function: Name of the function.
        arguments: What was given; None, False and 0 mean "not asked for".

    Raises:
        UnsupportedOp: One of them is asked for.
    """
    for name, value in arguments.items():
        if value is not None and value is not False and not (isinstance(value, int | float) and value == 0):
            shown = list(value.shape) if hasattr(value, "shape") else repr(value)
            raise UnsupportedOp(
                f"{function}: {name} is {shown}, which no operator of spikingbrain_hal computes; leave it out"
            )
