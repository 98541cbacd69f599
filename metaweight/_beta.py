"""Draws from a symmetric Beta distribution that take a generator and have a derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from metaweight.problems import ConfigurationError
from metaweight.problems.base.vectors import accumulation_dtype


def draw_symmetric_beta(
    concentration: Tensor, shape: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    """Draw from Beta(a, a); 1 where ``a = 0``.

    ``x / (x + y)`` with ``x, y ~ Gamma(a)``, each as ``Gamma(a + 1) · U^(1/a)``, so that only
    logarithms are needed: for a small ``a`` both underflow. The derivative by ``a`` is the pathwise
    one, unbiased for expectations (Figurnov et al., "Implicit Reparameterization Gradients",
    2018).

    Args:
        concentration: ``a ≥ 0``, one number.
        shape: Shape of the draws.
        generator: Source of the draws, on the device of ``concentration``; ``None`` for torch's
            own there.

    Returns:
        Numbers in [0, 1], on the device of ``concentration``, in its type or single precision.

    Raises:
        ConfigurationError: When the generator is on another device.
    """
    device = concentration.device
    if generator is not None and generator.device.type != device.type:
        raise ConfigurationError(
            f"A generator on {generator.device} was given for a concentration on {device}; make "
            "it with torch.Generator(device) of the same device."
        )
    wide = accumulation_dtype(concentration)
    # Far below any use; neither log U / a nor its derivative overflows.
    least = 10 * torch.finfo(wide).tiny ** 0.5
    a = concentration.to(wide).clamp_min(least).expand(2, *shape)
    uniform = torch.rand(a.shape, generator=generator, device=device, dtype=a.dtype)
    logs = torch._standard_gamma(a + 1, generator=generator).log() + (-uniform).log1p() / a
    return torch.where(concentration > 0, torch.sigmoid(logs[0] - logs[1]), 1)
