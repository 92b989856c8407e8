"""A stand-in for Triton with which files that hold kernels can be imported, and that says so when one is launched."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NoReturn

from ..errors import UnsupportedOp

# Below what anything in the wild asks for: a package that decides by version decides that there is no Triton.
VERSION = "0.0.0"


def _refuse(what: str) -> NoReturn:
    raise UnsupportedOp(
        f"{what}, but Triton is not installed: this is the stand-in of spikingbrain_hal.compat, which only lets files "
        f"with kernels be imported. Call the operator of spikingbrain_hal.ops that does the same, or install Triton"
    )


class Kernel:
    """A kernel that can be decorated, configured and indexed by a grid, but not launched.

    Args:
        fn: The Python function, or a name.
    """

    configs: Iterable[Any] = ()
    values: Mapping[str, Any] = {}

    def __init__(self, fn: Callable[..., Any] | str) -> None:
        self.fn = fn
        if callable(fn):
            functools.update_wrapper(self, fn)
            self.arg_names = list(inspect.signature(fn).parameters)
            place = f" ({inspect.getfile(fn)})"
        else:
            self.__name__, place = fn, ""
        self._title = f"the Triton kernel {self.__name__}{place}"

    def __getitem__(self, grid: Any) -> Callable[..., NoReturn]:
        """A launcher, which refuses."""
        return self

    def run(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses."""
        _refuse(f"{self._title} was launched")

    __call__ = warmup = run

    def __repr__(self) -> str:
        return f"<{self._title}, cannot be launched>"


class Config:
    """Meta-parameters of a kernel, as ``triton.Config`` keeps them."""

    def __init__(
        self,
        kwargs: Mapping[str, Any],
        num_warps: int = 4,
        num_stages: int = 3,
        num_ctas: int = 1,
        maxnreg: int | None = None,
        pre_hook: Any = None,
        ir_override: Any = None,
        **rest: Any,
    ) -> None:
        self.kwargs, self.num_warps, self.num_stages, self.num_ctas = dict(kwargs), num_warps, num_stages, num_ctas
        self.maxnreg, self.pre_hook, self.ir_override = maxnreg, pre_hook, ir_override

    def all_kwargs(self) -> dict[str, Any]:
        """Meta-parameters and launch options."""
        return {**self.kwargs, "num_warps": self.num_warps, "num_stages": self.num_stages, "num_ctas": self.num_ctas}


def jit(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``@triton.jit``, plain or with options."""
    return jit if fn is None else fn if isinstance(fn, Kernel) else Kernel(fn)


def autotune(
    configs: Iterable[Any],
    key: Iterable[str],
    prune_configs_by: Any = None,
    reset_to_zero: Any = None,
    restore_value: Any = None,
    pre_hook: Any = None,
    post_hook: Any = None,
    warmup: Any = None,
    rep: Any = None,
    use_cuda_graph: bool = False,
    do_bench: Any = None,
    cache_results: bool = False,
) -> Callable[[Any], Kernel]:
    """``@triton.autotune``; remembers the configurations."""

    def decorate(fn: Any) -> Kernel:
        kernel: Kernel = jit(fn)
        kernel.configs = list(configs)
        return kernel

    return decorate


def heuristics(values: Mapping[str, Any]) -> Callable[[Any], Kernel]:
    """``@triton.heuristics``; remembers the rules."""

    def decorate(fn: Any) -> Kernel:
        kernel: Kernel = jit(fn)
        kernel.values = dict(values)
        return kernel

    return decorate


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


class constexpr:
    """A constant of a kernel: an annotation, or a wrapped value."""

    def __init__(self, value: Any) -> None:
        self.value: Any = value.value if isinstance(value, constexpr) else value

    def __repr__(self) -> str:
        return f"constexpr[{self.value}]"


class Name:
    """A name of the kernel language. It can be passed about and compared, but does nothing outside a kernel.

    Args:
        path: In full.
    """

    _known: ClassVar[dict[str, Name]] = {}

    def __new__(cls, path: str) -> Name:
        found = cls._known.get(path)
        if found is None:
            found = super().__new__(cls)
            found.path = path
            cls._known[path] = found
        return found

    path: str

    def __getattr__(self, name: str) -> Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(f"{self.path}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decorates a function given alone; refuses anything else."""
        if len(args) == 1 and not kwargs and inspect.isfunction(args[0]):
            return Kernel(args[0])
        _refuse(f"{self.path} was called outside a kernel")

    def __or__(self, other: Any) -> Name:
        """In an annotation, ``tl.tensor | None``."""
        return self

    __ror__ = __or__

    def __repr__(self) -> str:
        return self.path


def _language(path: str) -> dict[str, object]:
    def __getattr__(name: str) -> Name:
        if name.startswith("_"):
            raise AttributeError(f"{path} has no attribute {name!r}")
        return Name(f"{path}.{name}")

    return {"constexpr": constexpr, "cdiv": cdiv, "__getattr__": __getattr__}


class OutOfResources(Exception):
    """What Triton raises for a kernel that needs too much; never raised here."""


class _Driver:
    """``triton.runtime.driver``, of which there is no active one."""

    @property
    def active(self) -> NoReturn:
        """Refuses, as Triton does where it finds no device."""
        raise RuntimeError("0 active drivers: triton is the stand-in of spikingbrain_hal.compat")


def do_bench(fn: Callable[[], Any], *args: Any, **kwargs: Any) -> NoReturn:
    """Refuses."""
    _refuse("triton.testing.do_bench was called")


def modules() -> dict[str, Callable[[], Mapping[str, object]]]:
    """What each module holds, by its full name."""
    tuner = {"Autotuner": Kernel, "Heuristics": Kernel, "Config": Config, "OutOfResources": OutOfResources}
    compiled = {"JITFunction": Kernel, "KernelInterface": Kernel, "jit": jit}
    top = (jit, autotune, heuristics, Config, cdiv, next_power_of_2, OutOfResources)
    language = (
        "language", "language.core", "language.math", "language.standard", "language.extra", "language.extra.libdevice",
        "language.extra.cuda", "language.extra.cuda.libdevice", "language.extra.hip", "language.extra.hip.libdevice",
    )  # fmt: skip
    return {
        "triton": lambda: {
            "__version__": VERSION,
            **{item.__name__: item for item in top},
            "constexpr": constexpr,
            "JITFunction": Kernel,
        },
        **{f"triton.{name}": functools.partial(_language, f"triton.{name}") for name in language},
        "triton.runtime": lambda: {"driver": _Driver(), **tuner, **compiled},
        "triton.runtime.autotuner": lambda: tuner,
        "triton.runtime.jit": lambda: compiled,
        "triton.testing": lambda: {"do_bench": do_bench},
    }
