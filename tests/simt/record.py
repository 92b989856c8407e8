"""Writes the calls of conformance cases into a file that tests/simt/replay.cpp runs without Python or torch.

    python tests/simt/record.py CALLS --cases 3 lif_scan lif_scan_backward

The format, in launch order (inputs, attributes, outputs; the workspace is the driver's):

    call <operator> <arguments>
    T <dtype> <ndim> <shape...> <strides...> <bytes>      followed by the bytes and a newline
    T none
    d <hexadecimal float>  |  i <integer>  |  b <0 or 1>  |  s <text>
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from spikingbrain_hal.declare.registry import OPERATORS
from spikingbrain_hal.declare.spec import OpSpec
from spikingbrain_hal.testing import io_dtypes, make_inputs, poison


def write_argument(file: BinaryIO, value: Any) -> None:
    if value is None:
        file.write(b"T none\n")
    elif isinstance(value, Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        numbers = (value.ndim, *value.shape, *value.contiguous().stride(), len(data))
        file.write(f"T {str(value.dtype).removeprefix('torch.')} {' '.join(map(str, numbers))}\n".encode())
        file.write(data + b"\n")
    elif isinstance(value, bool):
        file.write(f"b {value:d}\n".encode())
    elif isinstance(value, int):
        file.write(f"i {value}\n".encode())
    elif isinstance(value, float):
        file.write(f"d {value.hex()}\n".encode())
    else:
        file.write(f"s {value}\n".encode())


def write_call(file: BinaryIO, spec: OpSpec, args: Sequence[Any]) -> None:
    """Writes one call, its outputs poisoned."""
    outputs = [poison(torch.empty_like(t)) for t in spec.allocate(*args)]
    file.write(f"call {spec.name} {len(args) + len(outputs)}\n".encode())
    for value in (*args, *outputs):
        write_argument(file, value)


def elements(args: Iterable[Any]) -> int:
    return sum(a.numel() for a in args if isinstance(a, Tensor))


def record(path: Path, ops: Sequence[str], cases: int = 3, dtypes: Sequence[str] = ()) -> int:
    """Writes the ``cases`` smallest cases of each operator at each of its dtypes, or of ``dtypes``.

    Returns:
        The number of calls.
    """
    calls = 0
    with path.open("wb") as file:
        for spec in (OPERATORS[op] for op in ops):
            for dtype in io_dtypes(spec):
                if dtypes and str(dtype).removeprefix("torch.") not in dtypes:
                    continue
                made = [make_inputs(spec, case, dtype) for case in spec.cases]
                for args in sorted((m for m in made if elements(m)), key=elements)[:cases]:
                    write_call(file, spec, args)
                    calls += 1
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calls", type=Path)
    parser.add_argument("ops", nargs="+")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--dtype", action="append", default=[])
    given = parser.parse_args()
    print(record(given.calls, given.ops, given.cases, given.dtype), "calls")


if __name__ == "__main__":
    main()
