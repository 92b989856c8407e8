"""What files with kernels of their own import from ``fla.utils``: decorators, and facts about the device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint

Function = Callable[..., Any]


def tensor_cache(fn: Function) -> Function:
    """Returns fn. fla remembers results by the identity of tensors, and so misses changes in place."""
    return fn


def input_guard(fn: Function | None = None, *, no_guard_contiguous: Any = False) -> Function:
    """Makes a function see contiguous tensors.

    Args:
        fn: The function.
        no_guard_contiguous: True for all, or the names of keyword arguments that stay as they are.
    """
    if fn is None:
        return functools.partial(input_guard, no_guard_contiguous=no_guard_contiguous)
    free = set() if isinstance(no_guard_contiguous, bool) else set(no_guard_contiguous)

    def guarded(x: Any) -> Any:
        return x.contiguous() if isinstance(x, Tensor) and no_guard_contiguous is not True else x

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*map(guarded, args), **{name: x if name in free else guarded(x) for name, x in kwargs.items()})

    return wrapper


def require_version(version: str, hint: str) -> Callable[[Function], Function]:
    """Returns functions unchanged: nothing here needs the version asked for."""
    return lambda fn: fn


def checkpoint(fn: Function) -> Function:
    """Makes a function recompute its intermediate values in the backward pass."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return torch_checkpoint(fn, *args, use_reentrant=False, **kwargs)

    return wrapper


def check_pytorch_version(version_s: str = "2.4") -> bool:
    """Whether torch is at least this version."""
    return bool(torch.__version__ >= version_s)


def get_multiprocessor_count(tensor_idx: int = 0) -> int:
    """Compute units of the device; 1 on a CPU."""
    if not torch.cuda.is_available():
        return 1
    return int(torch.cuda.get_device_properties(tensor_idx).multi_processor_count)


def check_shared_mem(arch: str = "none", tensor_idx: int = 0) -> bool:
    """False: nothing here plans shared memory of a kernel."""
    return False


def get_abs_err(x: Tensor, y: Tensor) -> float:
    """The largest absolute difference."""
    return float((x.detach() - y.detach()).abs().max())


def get_err_ratio(x: Tensor, y: Tensor) -> float:
    """The root-mean-square difference over the root mean square of x."""
    error, base = ((t.detach().square().mean().sqrt()) for t in (x - y, x))
    return float(error / (base + 1e-8))


def assert_close(
    prefix: str, ref: Tensor, tri: Tensor, ratio: float, warning: bool = False, err_atol: float = 1e-6
) -> None:
    """Fails unless the absolute error is at most err_atol or the error ratio below ratio.

    Raises:
        AssertionError: It is not.
    """
    if get_abs_err(ref, tri) > err_atol and not get_err_ratio(ref, tri) < ratio:
        raise AssertionError(f"{prefix}: error ratio {get_err_ratio(ref, tri):.6f}, expected below {ratio}")


def names() -> dict[str, object]:
    """The names of ``fla.utils``."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if found is None else found.type
    library: ModuleType = getattr(torch, device)
    functions = (
        tensor_cache, input_guard, require_version, checkpoint, check_pytorch_version, get_multiprocessor_count,
        check_shared_mem, get_abs_err, get_err_ratio, assert_close,
    )  # fmt: skip
    abilities = (
        "intel_alchemist",
        "intel_a770",
        "nvidia_hopper",
        "tf32_supported",
        "tma_supported",
        "gather_supported",
    )
    return {
        **{f.__name__: f for f in functions},
        **{f"is_{ability}": False for ability in abilities},
        "is_amd": torch.version.hip is not None,
        "is_nvidia": torch.version.cuda is not None and device == "cuda",
        "is_intel": device == "xpu",
        "contiguous": input_guard,
        "autocast_custom_fwd": functools.partial(torch.amp.custom_fwd, device_type=device),
        "autocast_custom_bwd": functools.partial(torch.amp.custom_bwd, device_type=device),
        "custom_device_ctx": getattr(library, "device", contextlib.nullcontext),
        "device": device,
        "device_name": device,
        "device_platform": device,
        "device_torch_lib": library,
        "device_capacity": False,
        "use_cuda_graph": False,
        "autotune_cache_kwargs": {},
    }
