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
from metaweight.problems import ConfigurationError
from torch import Tensor, nn


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm that uses the statistics of all processes' batches in training mode.

    Without a process group it is torch's own layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``γ x̂ + β``."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        wide = input if input.dtype.itemsize >= 4 else input.float()
        mean, variance, count = _statistics(wide)
        if self.track_running_stats:
            self._note(mean.detach(), variance.detach(), count)
        shape = [1, -1] + [1] * (input.ndim - 2)
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        if self.bias is not None:
            shift = shift + self.bias
        return (wide * scale.view(shape) + shift.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.running_mean is None or self.running_var is None:
            return
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            # torch's own layer does not record this write for autograd either.
            change = new.to(running.dtype) - running
            if self.momentum is None:
                assert self.num_batches_tracked is not None
                change = change / self.num_batches_tracked
            else:
                change = change * self.momentum
            running.data.add_(change)


class SynchronisedBatchNorm1d(SynchronisedBatchNorm, nn.BatchNorm1d):
    """Of inputs ``(N, C)`` or ``(N, C, L)``."""


class SynchronisedBatchNorm2d(SynchronisedBatchNorm, nn.BatchNorm2d):
    """Of inputs ``(N, C, H, W)``."""


class SynchronisedBatchNorm3d(SynchronisedBatchNorm, nn.BatchNorm3d):
    """Of inputs ``(N, C, D, H, W)``."""


class SynchronisedSyncBatchNorm(SynchronisedBatchNorm, nn.SyncBatchNorm):
    """Of inputs ``(N, C, ...)``, in place of torch's, which has no second derivatives."""


KINDS: dict[type[nn.Module], type[SynchronisedBatchNorm]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    nn.BatchNorm3d: SynchronisedBatchNorm3d,
    nn.SyncBatchNorm: SynchronisedSyncBatchNorm,
}


def synchronise(problem: str, module: nn.Module, *, everywhere: bool) -> None:
    """Let the batch norms of a module use the statistics of all processes.

    The layers stay the same objects, with their parameters, hooks and places, and get another
    class.

    Args:
        problem: Name of the module's problem, for messages.
        module: The module.
        everywhere: Synchronise every batch norm; otherwise only ``SyncBatchNorm``.

    Raises:
        ConfigurationError: For a batch norm with a computation of its own, and for a
            ``SyncBatchNorm`` over a part of the processes.
    """
    for name, layer in module.named_modules():
        place = f"the layer {name!r} of problem {problem!r}"
        kind = KINDS.get(type(layer))
        if isinstance(layer, nn.SyncBatchNorm) and layer.process_group is not None:
            raise ConfigurationError(
                f"{place[0].upper()}{place[1:]} is a SyncBatchNorm with a process_group of its "
                "own, but batch norms are synchronised over all processes; leave process_group out."
            )
        if kind is not None and (everywhere or type(layer) is nn.SyncBatchNorm):
            layer.__class__ = kind  # type: ignore[assignment]
        elif kind is None and _is_other_batch_norm(layer) and everywhere:
            raise ConfigurationError(
                f"EngineConfig(sync_batch_norm=True) cannot synchronise {place}: it is a "
                f"{_kind_of(layer)}, whose computation may differ from torch's BatchNorm. Use "
                "nn.BatchNorm1d, 2d, 3d or nn.SyncBatchNorm as they are, without a script, a "
                "subclass or a parametrization; or make the layers to synchronise SyncBatchNorm "
                "and leave sync_batch_norm out."
            )


def _is_other_batch_norm(layer: nn.Module) -> bool:
    if isinstance(layer, torch.jit.ScriptModule):
        return "BatchNorm" in layer.original_name
    own = isinstance(layer, SynchronisedBatchNorm)
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and not own


def _kind_of(layer: nn.Module) -> str:
    scripted = isinstance(layer, torch.jit.ScriptModule)
    return f"scripted {layer.original_name}" if scripted else type(layer).__name__


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance per channel, and the number of values, over all processes."""
    channels, rest = input.shape[1], [d for d in range(input.ndim) if d != 1]
    number = input.new_full((1,), input.numel() // channels)
    # A process whose share of a selection is empty takes part with no values.
    mean = input.sum(rest) / max(input.numel() // channels, 1)
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
