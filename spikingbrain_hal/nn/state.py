"""What every carried state keeps to: it is whole or it is refused, and it can be written wherever it was made."""

from __future__ import annotations

import torch
from torch import Tensor


class Advancing:
    """A state of several parts that a call advances in place, one after another.

    A call that ends in an error may leave some parts behind the others, so the state is broken from where the first
    part is written to where the last one is.
    """

    broken: bool

    def begin(self) -> None:
        """Marks that parts are being written.

        Raises:
            RuntimeError: An earlier call never came to its end.
        """
        if self.broken:
            raise RuntimeError(
                f"{type(self).__name__}: an earlier call ended in an error after it had begun to advance the layers, "
                "so they no longer stand at the same token; start from a new state, or from a clone() made before it"
            )
        self.broken = True

    def finish(self) -> None:
        """Marks that every part is written."""
        self.broken = False


def writable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A part of a state as a call may write it and train on it.

    Args:
        x: The part, any shape.
        dtype: Of what is to be stored in it.

    Returns:
        x itself, or a copy if it has another dtype or was made in inference mode, which this call is not in. A graph
        can't look for the latter; torch refuses to write there.
    """
    x = x.to(dtype)
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return x
    return x.clone() if x.is_inference() else x
