"""The arguments of a call, held against an operator's declaration: what is wrong with them, in its words."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .axes import pair_axes

if TYPE_CHECKING:
    from .spec import Input, OpSpec, Rule

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "float": FLOATS,
    "index": (torch.int32, torch.int64),
    "float32": (torch.float32,),
    "int16": (torch.int16,),
    "int8": (torch.int8,),
}
_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "float": (numbers.Real, "a number"),
    "int": (numbers.Integral, "an integer"),
    "bool": (numbers.Integral, "a bool"),
    "str": (str, "a string"),
}
_LIMITS = {"float": 2**1024, "int": 2**63}


def check(spec: OpSpec, args: Sequence[Any]) -> dict[str, Any]:
    """Raises the declared argument errors that metadata show; returns the sizes of all axes.

    Raises:
        ValueError: A shape, a device or an attribute is not accepted.
        TypeError: A tensor is missing or has a dtype that is not accepted.
    """
    a = spec.bind(args)
    sizes: dict[str, Any] = {}
    origin: dict[str, str] = {}
    check_tensors(spec, args)
    _check_dtypes(spec, a)
    for axis, derive in spec.derived.items():
        names = inspect.signature(derive).parameters
        if _present(spec, names, a):
            with suppress(IndexError):  # of a tensor with too few axes, which binding them refuses
                sizes[axis] = derive(**{n: a[n] for n in names})
            origin[axis] = " and ".join(names)
    for name, declared in spec.inputs.items():
        if a[name] is not None:
            _bind_axes(spec, name, declared, a[name], sizes, origin)
    enforce(spec, spec.rules, {**a, **sizes})
    return sizes


def enforce(spec: OpSpec, rules: Sequence[Rule], a: Mapping[str, Any]) -> None:
    """Raises what the first broken rule says, as a ValueError."""
    for problem in filter(None, (rule(a) for rule in rules)):
        raise ValueError(f"{spec.name}: {problem}")


def check_tensors(spec: OpSpec, args: Sequence[Any]) -> None:
    """Raises TypeError for an input that is no tensor; only optional ones may be None."""
    for (name, declared), given in zip(spec.inputs.items(), _tensors(spec, args), strict=False):
        if isinstance(given, Tensor) or (given is None and name in spec.optional):
            continue
        found = "None" if given is None else type(given).__name__
        more = " or None" if name in spec.optional else ""
        raise TypeError(f"{spec.name}: {name} is {found}, expected a tensor [{declared.axes}]{more}")


def _tensors(spec: OpSpec, args: Sequence[Any]) -> Sequence[Any]:
    return args[: len(spec.inputs)]  # torch 2.6 compiles no zip of unequal lengths


def check_types(spec: OpSpec, args: Sequence[Any]) -> None:
    """Raises the error for what torch's schema does not take: an input that is no tensor, a number that is none.

    Raises:
        TypeError: An argument has another type than the declared one.
        ValueError: A number is too large for its type.
    """
    check_tensors(spec, args)
    for (name, parameter), given in zip(spec.attributes.items(), args[len(spec.inputs) :], strict=False):
        accepted, text = _ATTRIBUTES[parameter.annotation]
        if isinstance(given, Tensor) and given.numel() == 1 and parameter.annotation != "str":
            continue  # torch reads its number
        if not isinstance(given, accepted):
            raise TypeError(f"{spec.name}: {name} is {type(given).__name__}, expected {text}")
        limit = _LIMITS.get(parameter.annotation)
        if limit and isinstance(given, int) and not -limit <= given < limit:
            raise ValueError(f"{spec.name}: {name} is {given}, expected {text} of 64 bits")


def check_castable(spec: OpSpec, args: Sequence[Any]) -> None:
    """Raises TypeError unless what autocast would cast are tensors of floats; it may mix their dtypes."""
    check_tensors(spec, args)
    for name, given in zip(spec.inputs, _tensors(spec, args), strict=False):
        if name in spec.autocast and given is not None:
            _expect_dtype(spec, name, given, FLOATS)


def _present(spec: OpSpec, names: Iterable[str], a: Mapping[str, Any]) -> bool:
    return all(a[n] is not None or n in spec.optional for n in names if n in spec.inputs)


def _check_dtypes(spec: OpSpec, a: Mapping[str, Any]) -> None:
    device = None
    for name in spec.inputs:
        t = a[name]
        if t is None:
            continue
        shared = spec.inputs[name].dtype
        why = f", as in {shared}" if shared in spec.inputs else ""
        _expect_dtype(spec, name, t, accepted_dtypes(spec, name, a), why)
        if device is None:
            device, first = t.device, name
        elif t.device != device:
            raise ValueError(f"{spec.name}: {name} is on {t.device}, expected {device}, where {first} is")


def _expect_dtype(spec: OpSpec, name: str, tensor: Tensor, accepted: Sequence[torch.dtype], why: str = "") -> None:
    if tensor.dtype not in accepted:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in accepted)
        given = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{spec.name}: {name} is {given}, expected {wanted}{why}")


def accepted_dtypes(spec: OpSpec, name: str, a: Mapping[str, Any]) -> tuple[torch.dtype, ...]:
    """The dtypes input ``name`` may have beside the other arguments ``a``."""
    accepted: list[torch.dtype] = []
    for option in spec.inputs[name].dtype.split("|"):
        if option in spec.inputs:
            accepted += [a[option].dtype] if a[option] is not None else list(FLOATS)
        elif option == "acc":
            accepted.append(acc_dtype(spec, a))
        else:
            accepted += DTYPES[option]
    return tuple(dict.fromkeys(accepted))


def converted(spec: OpSpec) -> tuple[str, ...]:
    """The inputs, the first aside, that may have any float dtype and are computed with in that of sums."""
    return tuple(n for n, d in list(spec.inputs.items())[1:] if d.dtype == "float" and n not in spec.mutates)


def acc_dtype(spec: OpSpec, a: Mapping[str, Any]) -> torch.dtype:
    """The dtype of sums and carried state: float64 for float64 inputs, else float32."""
    first = next(a[n] for n in spec.inputs if a[n] is not None)
    return torch.float64 if first.dtype == torch.float64 else torch.float32


def _bind_axes(
    spec: OpSpec, name: str, declared: Input, t: Tensor, sizes: dict[str, Any], origin: dict[str, str]
) -> None:
    options = [option.split() for option in declared.axes.split("|")]
    fitting = [o for o in options if len(o) == t.dim() or ("..." in o and len(o) - 1 <= t.dim())]
    if not fitting:
        raise ValueError(
            f"{spec.name}: {name} has shape {list(t.shape)}, expected [{declared.axes.replace(' ', ', ')}]"
        )
    for axis, size in pair_axes(fitting[0], tuple(t.shape)):
        expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        origin.setdefault(axis, name)
        if expected != size:
            why = "" if axis.isdigit() else f", as in {origin[axis]}"
            raise ValueError(
                f"{spec.name}: axis {axis} of {name} is {size}, expected {expected}{why}"
                f" ({name} has shape {list(t.shape)}, expected [{declared.axes.replace(' ', ', ')}])"
            )
