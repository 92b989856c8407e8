"""When a result is right: the acceptance rules, and nothing about any one operator.

Float outputs are held to what the same maths in working precision achieves, elementwise and in the mean; carried
state to an absolute bound however coarse the other tensors are; discrete outputs to what rounding may decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...declare.spec import OpSpec
from .truth import Truth

MAX_RATIO = {torch.float32: 4.0, torch.bfloat16: 2.0, torch.float16: 2.0}  # K, by the dtype of the output
RMS_RATIO = {torch.float32: 2.0, torch.bfloat16: 1.0, torch.float16: 1.0}  # R: docs/calibration.md shows the margins
SCATTER = 2.0  # the rms of few errors, or of some that share a cause, is sometimes twice that of many
FLOOR = 16.0  # roundings at working precision: 2 sqrt(n) at n = 64 terms, a block; beyond it TF32 would slip through
STATE_BOUND = 2.0**-14
EXCUSED_SHARE = 1e-4
EXCUSED_EXTRA = 1
EXCUSED_TIES = 3
UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
WORKING_ROUNDOFF = 2.0**-24
SMALLEST = {torch.float64: 2.0**-1074, torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


class Mismatch(AssertionError):
    """A result is outside tolerance, or a promise is broken.

    Attributes:
        worst: The error as a fraction of what is allowed, where that makes sense.
    """

    def __init__(self, message: str, worst: float | None = None) -> None:
        super().__init__(message)
        self.worst = worst


@dataclass
class Judgement:
    """What a comparison found: the worst error as a fraction of what is allowed, and what was not held against it."""

    worst: float = 0.0
    excused: int = 0
    excluded: int = 0

    def add(self, other: Judgement) -> Judgement:
        """Joins two comparisons of one case."""
        return Judgement(max(self.worst, other.worst), self.excused + other.excused, self.excluded + other.excluded)


@dataclass(frozen=True)
class Ratios:
    """How the errors of one float output compare with what is allowed.

    Attributes:
        dtype: Of the output.
        share: The worst error as a fraction of what is allowed; the output is wrong where it is above 1.
        maximum: The least ``MAX_RATIO`` that would accept it, for outputs compared with the base.
        rms: The least ``RMS_RATIO`` that would accept it.
    """

    dtype: torch.dtype
    share: float
    maximum: float = 0.0
    rms: float = 0.0


_watchers: list[Callable[[Ratios], None]] = []


@contextmanager
def watched(watcher: Callable[[Ratios], None]) -> Iterator[None]:
    """Shows every comparison of float outputs to a calibration, those that fail too."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def judge(spec: OpSpec, truth: Truth, outputs: Mapping[str, Tensor], slack: float = 1.0) -> Judgement:
    """Compares the outputs of a call with the truth.

    Args:
        spec: The operator.
        truth: What they should be.
        outputs: What they are.
        slack: How many times the usual error is allowed. Above 1 for outputs of few elements, whose base may be right
            by luck and whose decisions may all be ties: their number is then not limited.

    Raises:
        Mismatch: One is outside tolerance.
    """
    return every(partial(_judge_output, spec, name, truth, got, slack) for name, got in outputs.items())


def every(comparisons: Iterable[Callable[[], Judgement]]) -> Judgement:
    """Makes all comparisons, as one that fails says nothing of those behind it.

    Raises:
        Mismatch: Of those that fail the one that is furthest off, above all one whose error is no number.
    """
    found, failed = Judgement(), []
    for compare in comparisons:
        try:
            found = found.add(compare())
        except Mismatch as error:
            failed.append(error)
    if failed:
        raise max(failed, key=lambda error: error.worst if error.worst is not None else math.inf)
    return found


def _judge_output(spec: OpSpec, name: str, truth: Truth, got: Tensor, slack: float) -> Judgement:
    expected = truth.expected[name]
    if got.shape != expected.shape:
        raise Mismatch(f"{name} has shape {list(got.shape)}, expected {list(expected.shape)}")
    if got.dtype != truth.base[name].dtype:
        raise Mismatch(f"{name} is {got.dtype}, expected {truth.base[name].dtype}")
    if not got.is_contiguous():
        raise Mismatch(f"{name} is not contiguous")
    if got.numel() == 0:
        return Judgement()
    if name in truth.floor:
        return _judge_discrete(name, truth, got, ties_counted=slack == 1)
    if got.is_floating_point():
        return _judge_float(spec, name, truth, got, slack)
    if not torch.equal(got, expected.to(got.dtype)):
        raise Mismatch(f"{name} differs at {_place(got != expected)}, integers must be equal")
    return Judgement()


def _judge_discrete(name: str, truth: Truth, got: Tensor, ties_counted: bool) -> Judgement:
    values, floor, ceiling = got.double(), truth.floor[name], truth.ceiling[name]
    wrong = (values < floor) | (values > ceiling) | values.isnan()
    if wrong.any():
        count = int(wrong.sum())
        raise Mismatch(f"{name} is wrong in {count} of {got.numel()} decisions, first at {_place(wrong)}")
    excused = int((values != truth.expected[name]).sum())
    ambiguous = int((floor != ceiling).sum())  # ties, which are common among 16-bit numbers; each may fall either way
    allowed = EXCUSED_SHARE * got.numel() + EXCUSED_EXTRA + min(ambiguous / 2, EXCUSED_TIES)
    if ties_counted and excused > allowed:
        raise Mismatch(
            f"{name} differs in {excused} of {got.numel()} decisions that rounding could explain, "
            f"at most {allowed:.1f} are excused",
            excused / allowed,
        )
    return Judgement(excused=excused)


def _judge_float(spec: OpSpec, name: str, truth: Truth, got: Tensor, slack: float) -> Judgement:
    kept = ~truth.excluded[name] if name in truth.excluded else torch.ones_like(got, dtype=torch.bool)
    expected = truth.expected[name]
    try:
        compare_special_values(name, got, expected, kept)
    except Mismatch:
        _show(Ratios(got.dtype, math.inf, math.inf, math.inf))
        raise
    finite = kept & expected.to(got.dtype).isfinite()
    excluded = int((~kept).sum())
    if not finite.any():
        return Judgement(excluded=excluded)
    error = (got.double() - expected).abs()[finite]
    if name in truth.allowed:
        bound = slack * truth.allowed[name][finite]
        return Judgement(_within_bound(name, error, bound, finite, "", got.dtype), excluded=excluded)
    magnitude = torch.nan_to_num(truth.magnitude[name].double().abs()[finite])
    worst = 0.0
    state = is_state(spec, name)
    if state:
        worst = _within_bound(name, error, slack * STATE_BOUND * magnitude, finite, "of carried state ", got.dtype)
    if not state or _only_float32(truth):
        base = (truth.base[name].double() - expected).abs()[finite]
        roundings = FLOOR * WORKING_ROUNDOFF + (UNIT_ROUNDOFF[truth.saved] / 2 if truth.saved else 0.0)
        floor = roundings * magnitude.clamp_min(_rms(magnitude)) + SMALLEST[got.dtype]
        size, unit = expected[finite].abs(), UNIT_ROUNDOFF[got.dtype]
        # a base that is right by luck counts as rounded once
        peak, rms = max(float(base.max()), unit * float(size.max())), max(_rms(base), unit * _rms(size))
        worst = max(worst, _within_base(name, error, slack * peak, slack * rms, slack * floor, finite, got.dtype))
    return Judgement(worst, excluded=excluded)


def _only_float32(truth: Truth) -> bool:
    return all(t.dtype not in (torch.float16, torch.bfloat16) for t in truth.base.values())


def _show(ratios: Ratios) -> None:
    for watcher in _watchers:
        watcher(ratios)


def is_state(spec: OpSpec, name: str) -> bool:
    """Whether an output is what a recurrence hands on."""
    return name in spec.mutates or (spec.time is not None and name == spec.time.state_out)


def compare_special_values(name: str, got: Tensor, expected: Tensor, kept: Tensor | None = None) -> None:
    """Raises Mismatch unless NaN and the infinities are where they should be, among what is ``kept``."""
    rounded = expected.to(got.dtype)
    for what, test in (("NaN", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        differs = test(got) != test(rounded)
        differs = differs if kept is None else differs & kept
        if differs.any():
            raise Mismatch(f"{name} differs in where it is {what}, first at {_place(differs)}")


def _within_base(
    name: str, error: Tensor, peak: float, rms: float, floor: Tensor, finite: Tensor, dtype: torch.dtype
) -> float:
    """Both rules, the largest error and the rms."""
    ratio = _ratio(error, MAX_RATIO[dtype] * peak + floor)
    rms *= 1 + SCATTER / math.sqrt(error.numel())
    allowed = RMS_RATIO[dtype] * rms + _rms(floor)
    mean = _rms(error) / allowed
    beyond = torch.where(error <= floor, 0.0, (error - floor) / peak)
    rms_beyond = max(_rms(error) - _rms(floor), 0.0)
    worst = max(float(ratio.max()), mean)
    _show(Ratios(dtype, worst, float(beyond.max()), rms_beyond / rms if rms_beyond else 0.0))
    _require(name, error, ratio, finite, "", mean)
    if mean > 1:
        raise Mismatch(f"{name} has an rms error of {_rms(error):.3g}, {mean:.3g} times what is allowed", mean)
    return worst


def _within_bound(name: str, error: Tensor, allowed: Tensor, finite: Tensor, what: str, dtype: torch.dtype) -> float:
    ratio = _ratio(error, allowed)
    _show(Ratios(dtype, float(ratio.max())))
    return _require(name, error, ratio, finite, what)


def _ratio(error: Tensor, allowed: Tensor) -> Tensor:
    return torch.where(error == 0, 0.0, error / allowed)


def _require(name: str, error: Tensor, ratio: Tensor, finite: Tensor, what: str, mean: float = 0.0) -> float:
    worst, at = ratio.max(0)
    if not worst <= 1:
        place = finite.nonzero()[at].tolist()
        raise Mismatch(
            f"{name} has an error {what}of {float(error[at]):.3g} at {place}, {float(worst):.3g} times what is allowed",
            max(float(worst), mean),
        )
    return float(worst)


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


def _place(mask: Tensor) -> list[int]:
    place: list[int] = mask.nonzero()[0].tolist()
    return place


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and value, NaN equal to NaN; the two zeros are told apart."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    both_nan = a.isnan() & b.isnan()
    return bool((((a == b) & (a.signbit() == b.signbit())) | both_nan).all())


def require_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises Mismatch unless two sets of results are bitwise equal."""
    for name, tensor in expected.items():
        if not same_bits(found[name], tensor):
            differs = (
                f", first at {_place(found[name] != tensor)}"
                if found[name].shape == tensor.shape and bool((found[name] != tensor).any())
                else ""
            )
            raise Mismatch(f"{what}: {name} is not bitwise the same{differs}")
