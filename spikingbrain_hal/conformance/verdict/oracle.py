"""What the results of a call should be: the reference in float64, in working precision, and on absolute values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...declare.spec import OpSpec
from ..operators import properties_of
from .truth import Named, Truth, in_float64, named_results


def sums_of_absolute_terms(spec: OpSpec, args: Sequence[Any]) -> Named:
    """The reference's results on absolute values, plus the terms that its properties add for an output."""
    a, known = spec.bind(args), properties_of(spec)
    a |= {n: a[n].abs() for n in known.magnitude if a[n] is not None}
    terms = known.terms(a) if known.terms else {}
    found = named_results(spec, spec.reference, list((a | {n: terms.get(n, a[n]) for n in a}).values()))
    return found | {n: found[n].abs() + terms[n] for n in spec.outputs if n in terms}


def truth(spec: OpSpec, args: Sequence[Any], outputs: Mapping[str, Tensor]) -> Truth:
    """What ``outputs`` should have been; operators that decide spikes are judged on the spikes they gave.

    Raises:
        ValueError: The suite knows nothing of the operator.
    """
    replay = properties_of(spec).replay
    return replay(spec, args, outputs) if replay else reference_truth(spec, args)


def reference_truth(spec: OpSpec, args: Sequence[Any]) -> Truth:
    """The truth of an operator whose outputs are smooth functions of its inputs, or exact."""
    wide = in_float64(spec, args)
    with torch.no_grad():
        return Truth(
            expected=named_results(spec, spec.reference, wide),
            base=named_results(spec, spec.reference, args),
            magnitude=sums_of_absolute_terms(spec, wide),
            saved=_saved_dtype(spec, args),
        )


def _saved_dtype(spec: OpSpec, args: Sequence[Any]) -> torch.dtype | None:
    names = spec.forward.saved if spec.forward else ()
    dtypes = [spec.bind(args)[n].dtype for n in names]
    return next((d for d in dtypes if d.is_floating_point), None)
