"""What a call and the import cost beside torch's own: ``python -m bench.calls``.

Each operator is called at tiny sizes without gradients, in turn with an operator of the same schema that does nothing
but allocate outputs of the same shapes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

import spikingbrain_hal
from bench.timing import per_call
from spikingbrain_hal import ops
from spikingbrain_hal.declare.registry import OPERATORS

LIBRARY = torch.library.Library("sbhal_empty", "DEF")


def empty_twin(name: str) -> Any:
    """An operator with the schema and outputs of ``name``, and nothing else."""
    spec = OPERATORS[name]
    LIBRARY.define(spec.schema)
    single = len(spec.outputs) == 1
    allocate = spec.allocate
    LIBRARY.impl(name, lambda *a: allocate(*a)[0] if single else allocate(*a), "CPU")
    return getattr(torch.ops.sbhal_empty, name).default


def tiny_calls() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each operator: our public call, and its empty twin."""
    q, kv = torch.randn(1, 1, 2, 16), torch.randn(1, 1, 1, 16)
    gate, state = -torch.rand(1, 1, 1, 16), torch.zeros(1, 1, 16, 16)
    x = torch.randn(4, 16)
    gla, step = empty_twin("gated_linear_attention"), empty_twin("gated_linear_attention_step_")
    attend, encode, quantize = empty_twin("attention"), empty_twin("spike_encode"), empty_twin("spike_quantize")
    lif, linear = empty_twin("lif_scan"), empty_twin("spike_linear")
    counts, threshold = torch.zeros(4, 32, dtype=torch.int16), torch.ones(4, 1)
    codes, scales = torch.zeros(16, 32, dtype=torch.int8), torch.ones(16, 1)
    neuron = (0.5, 0.5, 0.0, 1.0, "hard", 0.0, False, False, False, 1, "floor", float("-inf"), "sigmoid", 4.0, 0.0)
    now = (q[:, 0], kv[:, 0], kv[:, 0], gate[:, 0], state)
    return {
        "gated_linear_attention": (
            lambda: ops.gated_linear_attention(q, kv, kv, gate, 0.25, state),
            lambda: gla(q, kv, kv, gate, state, None, 0.25, False),
        ),
        "gated_linear_attention_step_": (
            lambda: ops.gated_linear_attention_step_(*now, scale=0.25),
            lambda: step(*now, None, 0.25),
        ),
        "attention": (
            lambda: ops.attention(q, kv, kv),
            lambda: attend(q, kv, kv, None, None, None, True, 0, 0.25, 0),
        ),
        "lif_scan": (lambda: ops.lif_scan(x), lambda: lif(x, None, None, None, *neuron, False)),
        "spike_encode": (lambda: ops.spike_encode(x), lambda: encode(x, 3.0, 1e-5, 1e4, "float32")),
        "spike_linear": (
            lambda: ops.spike_linear(counts, threshold, codes, scales, 32),
            lambda: linear(counts, threshold, codes, scales, None, 32, "float32"),
        ),
        "spike_quantize": (lambda: ops.spike_quantize(x), lambda: quantize(x, 3.0)),
    }


def import_seconds(rounds: int = 5) -> float:
    """Median seconds that ``import spikingbrain_hal`` takes once torch is imported."""
    code = "import torch,time;t=time.perf_counter();import spikingbrain_hal;print(time.perf_counter()-t)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(rounds)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    torch.set_num_threads(1)
    spikingbrain_hal.use_backend("cpu")
    print(f"import beyond torch: {import_seconds():.3f} s")
    print(f"{'operator':32}{'ours us':>10}{'empty us':>10}{'ratio':>8}")
    with torch.no_grad():
        for name, (ours, empty) in tiny_calls().items():
            pairs = [(per_call(ours), per_call(empty)) for _ in range(9)]
            middle = statistics.median(a / b for a, b in pairs)
            a, b = (statistics.median(p[i] for p in pairs) * 1e6 for i in (0, 1))
            print(f"{name:32}{a:10.2f}{b:10.2f}{middle:8.2f}")


if __name__ == "__main__":
    main()
