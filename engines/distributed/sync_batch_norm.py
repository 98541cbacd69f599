"""Batch norm with the statistics of the batches of all processes together.

With ``n_r`` values per channel in process ``r``, their mean ``m_r`` and sum of squared deviations
``s_r``, one all-reduce gives ::

    m = Σ n_r m_r / Σ n_r,    var = Σ (s_r + n_r (m_r - m)²) / Σ n_r

The derivative of the all-reduced sum is the same sum of cotangents. Unlike torch's
``SyncBatchNorm`` it can be differentiated any number of times and in forward mode, on every device.
Each process computes the derivative of the sum of all losses by its own copy of the parameters; the
mean over processes is the derivative of the mean loss.

Source of the layer: Ioffe, Szegedy, "Batch Normalization", ICML 2015 (arXiv:1502.03167); of the
formula: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", 1979.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronised(module: nn.Module, world: int) -> nn.Module:
    """Return ``module`` with every batch norm synchronised; unchanged for a single process.

    The new layers hold the same parameters and buffers.
    """
    if world == 1:
        return module
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return SynchronisedBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronised(child, world))
    return module


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm that uses the statistics of all processes' batches in training mode.

    Args:
        layer: The batch norm to replace; parameters and buffers are shared with it.
    """

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        )
        for name, parameter in layer._parameters.items():
            self._parameters[name] = parameter
        for name, buffer in layer._buffers.items():
            self._buffers[name] = buffer
        self.training = layer.training
        self._check = layer._check_input_dim

    def forward(self, input: Tensor) -> Tensor:
        """Return ``γ x̂ + β``."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        self._check_input_dim(input)
        wide = input if input.dtype.itemsize >= 4 else input.float()
        mean, variance, count = _statistics(wide)
        if self.training and self.track_running_stats:
            self._note(mean.detach(), variance.detach(), count)
        shape = [1, -1] + [1] * (input.ndim - 2)
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        if self.bias is not None:
            shift = shift + self.bias
        return (wide * scale.view(shape) + shift.view(shape)).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        self._check(input)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.running_mean is None or self.running_var is None:
            return
        share: Any = self.momentum
        if share is None:
            assert self.num_batches_tracked is not None
            share = 1.0 / self.num_batches_tracked
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            # torch's own layer does not record this write for autograd either.
            running.data.add_((new.to(running.dtype) - running) * share)


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance per channel, and the number of values, over all processes."""
    channels, rest = input.shape[1], [d for d in range(input.ndim) if d != 1]
    number = input.new_full((1,), input.numel() // channels)
    mean = input.mean(rest)
    shape = [1, -1] + [1] * (input.ndim - 2)
    squares = (input - mean.view(shape)).square().sum(rest)
    rank, world = dist.get_rank(), dist.get_world_size()
    # Each process fills its own row, so the sum holds all rows.
    own = nn.functional.pad(
        torch.cat([number, mean, squares])[None], (0, 0, rank, world - rank - 1)
    )
    rows: Tensor = _Sum.apply(own)
    counts, means, deviations = rows[:, :1], rows[:, 1 : channels + 1], rows[:, channels + 1 :]
    total = counts.sum()
    together = (counts * means).sum(0) / total
    variance = (deviations + counts * (means - together).square()).sum(0) / total
    return together, variance, total.detach()


class _Sum(torch.autograd.Function):
    """The sum over processes."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        del ctx
        total = input.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        del ctx
        return _Sum.apply(cotangent.contiguous())

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Any:
        del ctx
        return _Sum.apply(tangent.contiguous())
