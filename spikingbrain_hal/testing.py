"""For people who write kernels: inputs for any declared operator, poisoned memory, comparison with the oracle.

from spikingbrain_hal import testing
from spikingbrain_hal.declare.registry import OPERATORS

spec = OPERATORS["attention"]
args = testing.make_inputs(spec, spec.cases[0], torch.bfloat16)
testing.assert_matches(spec, args, my_attention(*args))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .backend.python import python_backend
from .declare.inputs import io_dtypes, make_inputs, poison
from .declare.spec import OpSpec

__all__ = ["assert_matches", "io_dtypes", "make_inputs", "poison", "python_backend"]


def assert_matches(spec: OpSpec, args: Sequence[Any], outputs: Any) -> float:
    """Compares the results of one call with the float64 oracle by the rules of the conformance suite.

    Args:
        spec: The operator.
        args: The arguments of the call, as :func:`make_inputs` gives them.
        outputs: What the call returned, a tensor or a tuple.

    Returns:
        The worst error as a fraction of what is allowed.

    Raises:
        AssertionError: An output is outside tolerance; the message says which, where and by how much.
        ValueError: The suite knows nothing of the operator.
    """
    from .conformance.verdict.judge import judge
    from .conformance.verdict.oracle import truth

    results = outputs if isinstance(outputs, tuple) else (outputs,)
    named = dict(zip(spec.outputs, results, strict=True))
    return judge(spec, truth(spec, args, named), named).worst
