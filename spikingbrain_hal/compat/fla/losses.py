"""fla's cross-entropy losses in plain PyTorch: float32 logits, one chunk of them at a time where asked."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..signatures import refuse


def l2_warp(loss: Tensor, logits: Tensor, l2_penalty_factor: float = 1e-4) -> Tensor:
    """The loss unchanged, with a pull of the largest logits towards zero added to its gradient.

    The gradient is that of ``l2_penalty_factor / 2 * mean(max(logits)^2)``.

    Args:
        loss: A scalar.
        logits: [B, T, vocabulary].
        l2_penalty_factor: Strength.
    """
    penalty = logits.amax(-1).square().sum() * (0.5 * l2_penalty_factor / (logits.shape[0] * logits.shape[1]))
    return loss + (penalty - penalty.detach()).to(loss.dtype)


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, logits: Tensor, l2_penalty_factor: float) -> Tensor:
        """The loss."""
        top, place = logits.max(-1, keepdim=True)
        ctx.save_for_backward(top * (l2_penalty_factor / (logits.shape[0] * logits.shape[1])), place)
        ctx.shape = logits.shape
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The incoming gradient for the loss, and for the logits the pull as it is."""
        pull, place = ctx.saved_tensors
        return gradient, pull.new_zeros(ctx.shape).scatter_(-1, place, pull), None


def l2_warp_04(loss: Tensor, logits: Tensor, l2_penalty_factor: float = 1e-4) -> Tensor:
    """:func:`l2_warp` of fla 0.4, whose pull doesn't grow with the incoming gradient, as under a loss scaler."""
    result: Tensor = _Pull.apply(loss, logits, l2_penalty_factor)  # type: ignore[no-untyped-call]
    return result


def _scaled(logits: Tensor, scale: float, softcapping: float | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    return logits if softcapping is None else softcapping * torch.tanh(logits / softcapping)


class FusedCrossEntropyLoss(nn.Module):
    """Cross entropy of logits, [N, vocabulary], and targets, [N].

    Args:
        ignore_index: Targets with this value give loss 0 and are not counted in the mean.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Weight of the uniform distribution.
        logit_scale: Factor on the logits.
        lse_square_scale: Factor of the squared log-normalizer that is added to the loss (z-loss).
        logit_softcapping: Bound c of ``c tanh(logits / c)``.
        inplace_backward: Accepted; the gradient has memory of its own.
        process_group: Not supported.
        return_z_loss: Also return the z-loss, without gradient.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        lse_square_scale: float = 0.0,
        *,
        logit_softcapping: float | None = None,
        inplace_backward: bool = False,
        process_group: Any = None,
        return_z_loss: bool = False,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"FusedCrossEntropyLoss: reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
        refuse("FusedCrossEntropyLoss", process_group=process_group)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        self.logit_scale, self.lse_square_scale = logit_scale, lse_square_scale
        self.logit_softcapping, self.return_z_loss = logit_softcapping, return_z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The loss, float32, and the z-loss if asked for."""
        logits = _scaled(input, self.logit_scale, self.logit_softcapping)
        kept = target != self.ignore_index
        loss = F.cross_entropy(
            logits, target, ignore_index=self.ignore_index, reduction="none", label_smoothing=self.label_smoothing
        )
        z_loss = torch.zeros_like(loss)
        if self.lse_square_scale:
            z_loss = self.lse_square_scale * logits.logsumexp(-1).square() * kept
            loss = loss + z_loss
        loss, z_loss = self._reduce(loss, kept), self._reduce(z_loss, kept).detach()
        return (loss, z_loss) if self.return_z_loss else loss

    def _reduce(self, loss: Tensor, kept: Tensor) -> Tensor:
        if self.reduction == "none":
            return loss
        return loss.sum() / kept.sum() if self.reduction == "mean" else loss.sum()


class FusedLinearCrossEntropyLoss(nn.Module):
    """Cross entropy of ``x weight^T + bias``, whose logits exist for one chunk of tokens at a time.

    Args:
        ignore_index: Targets with this value are left out.
        label_smoothing: Weight of the uniform distribution.
        logit_scale: Factor on the logits.
        logit_softcapping: Bound c of ``c tanh(logits / c)``.
        num_chunks: Into how many chunks the tokens are split.
        reduction: ``"mean"`` or ``"sum"``.
        use_l2warp: Add the gradient of :func:`l2_warp`.
        l2_penalty_factor: Its strength.
        accumulate_grad_in_fp32: Accepted; autograd sums the chunks' gradients in the parameters' dtype.
        process_group: Not supported.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        *,
        logit_softcapping: float | None = None,
        num_chunks: int = 8,
        reduction: str = "mean",
        use_l2warp: bool = False,
        l2_penalty_factor: float = 1e-4,
        accumulate_grad_in_fp32: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"FusedLinearCrossEntropyLoss: reduction is {reduction!r}, expected 'mean' or 'sum'")
        refuse("FusedLinearCrossEntropyLoss", process_group=process_group)
        self.ignore_index, self.label_smoothing, self.logit_scale = ignore_index, label_smoothing, logit_scale
        self.logit_softcapping, self.num_chunks, self.reduction = logit_softcapping, num_chunks, reduction
        self.use_l2warp, self.l2_penalty_factor = use_l2warp, l2_penalty_factor

    def forward(self, x: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The loss, a float32 scalar.

        Args:
            x: Hidden states, [..., hidden_size].
            target: [...].
            weight: [vocabulary, hidden_size].
            bias: [vocabulary].
        """
        x, target = x.reshape(-1, x.shape[-1]), target.reshape(-1)
        sums = x.new_zeros(2, dtype=torch.promote_types(x.dtype, torch.float32))
        for part, wanted in zip(x.chunk(self.num_chunks), target.chunk(self.num_chunks), strict=True):
            sums = sums + checkpoint(self._chunk, part, wanted, weight, bias, use_reentrant=False)
        loss, penalty = sums.unbind()
        if self.reduction == "mean":
            loss = loss / (target != self.ignore_index).sum()
        if not self.use_l2warp:
            return loss
        penalty = penalty * (0.5 * self.l2_penalty_factor / self._pulled(target))
        return loss + (penalty - penalty.detach())

    def _pulled(self, target: Tensor) -> Tensor | int:
        """By how many tokens the pull is divided: all."""
        return len(target)

    def _chunk(self, x: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The sums of loss and of squared largest logits, [2]."""
        raw = F.linear(x, weight, bias)
        logits = _scaled(raw, self.logit_scale, self.logit_softcapping)
        loss = F.cross_entropy(
            logits, target, ignore_index=self.ignore_index, reduction="sum", label_smoothing=self.label_smoothing
        )
        return torch.stack((loss, raw.amax(-1).to(loss.dtype).square().sum()))


class FusedLinearCrossEntropyLoss04(FusedLinearCrossEntropyLoss):
    """:class:`FusedLinearCrossEntropyLoss` of fla 0.4, whose pull is reduced as the loss is."""

    def _pulled(self, target: Tensor) -> Tensor | int:
        """By how many tokens the pull is divided: those that count, or 1 for a sum."""
        return (target != self.ignore_index).sum() if self.reduction == "mean" else 1
