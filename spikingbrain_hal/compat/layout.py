"""Notices calls whose tensors lie head-first where time comes first, or the other way round."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

HEAD_FIRST_PROFILE, TIME_FIRST_PROFILE = "0.1", "current"
WIDEST = 32768  # channels of all heads; SpikingBrain-7B has 3,584
TEXTS = 3  # so many lengths of text are one model's, not as many models of other head counts


class LayoutWarning(UserWarning):
    """The shapes of a call suggest that its tensors lie in the layout of another version of the library."""


class LayoutError(ValueError):
    """What :class:`LayoutWarning` warns of, under ``strict=True``."""


class LayoutWitness:
    """Compares the shapes of calls with each other and with the states they carry.

    Code written for the other layout has its heads where steps are expected: their number never changes, while what is
    read as heads follows the length of the text. No single shape tells: a prompt shorter than its heads looks like a
    text in the other layout. Three things do: the carried state has another number of heads than the call; calls of as
    many steps, fewer than heads, come with ever other heads; or such a call has more channels than any layer. A number
    of heads that a state, or calls of different length, have confirmed is no sign.

    Args:
        profile: The version whose layout is in force.
        strict: Refuse such a call instead of warning once.
    """

    def __init__(self, profile: str, strict: bool) -> None:
        self.profile, self.strict = profile, strict
        self.lengths: dict[tuple[int, int, int], int] = {}  # (K, V, heads) -> steps of the first long call
        self.suspects: dict[tuple[int, int, int], list[int]] = {}  # (K, V, steps) -> heads, more than steps
        self.confirmed: set[tuple[int, int, int]] = set()  # (K, V, heads)
        self.warned = False

    def check(
        self, function: str, q: Tensor, v: Tensor, heads: int, steps: int, state: Tensor | None, packed: bool
    ) -> None:
        """Looks at one call.

        Args:
            function: Its name.
            q: Queries as given.
            v: Values as given.
            heads: Number of heads as the profile reads q.
            steps: Number of time steps as the profile reads q.
            state: The carried state, [N, H, K, V].
            packed: Whether several sequences lie along time.

        Raises:
            LayoutError: Under strict, the layout is the other one.
        """
        if torch.compiler.is_compiling() or packed or q.dim() != 4:
            return
        sign = self._sign((q.shape[-1], v.shape[-1]), heads, steps, state)
        if sign is None or (self.warned and not self.strict):
            return
        head_first = self.profile == HEAD_FIRST_PROFILE
        read, other = ("[B, H, T, D]", "[B, T, H, D]") if head_first else ("[B, T, H, D]", "[B, H, T, D]")
        fits = TIME_FIRST_PROFILE if head_first else HEAD_FIRST_PROFILE
        message = (
            f"{function}: q is {list(q.shape)}, read as {read} under fla={self.profile!r}: {steps} steps of {heads} "
            f"heads. {sign}, so this looks like {other}, which spikingbrain_hal.compat reads with fla={fits!r}"
        )
        if self.strict:
            raise LayoutError(message)
        self.warned = True
        warnings.warn(message, LayoutWarning, stacklevel=6)

    def _sign(self, size: tuple[int, int], heads: int, steps: int, state: Tensor | None) -> str | None:
        if state is not None and state.dim() == 4:
            if state.shape[1] != heads:
                return f"The carried state has {state.shape[1]} heads"
            self.confirmed.add((*size, heads))
        if steps == 1:
            return None
        if self.lengths.setdefault((*size, heads), steps) != steps:
            self.confirmed.add((*size, heads))
        if steps >= heads or (*size, heads) in self.confirmed:
            return None
        if heads * size[0] > WIDEST:
            return f"{heads * size[0]} channels are more than any layer has"
        suspects = self.suspects.setdefault((*size, steps), [])
        if heads not in suspects:
            suspects.append(heads)
        others = [n for n in suspects if n != heads and (*size, n) not in self.confirmed]
        if len(others) < TEXTS - 1:
            return None
        return f"Calls before had {' and '.join(map(str, others))} heads and as many steps"
