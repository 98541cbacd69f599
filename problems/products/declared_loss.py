"""Derivatives of a recorded loss that is declared as a weighted mean of sample losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..recording.recorded_steps import RecordedStep
from ..recording.samples import Samples
from .recorded_loss import RecordedLoss, SampleLoss
from .sample_derivatives import Pairs, forward_mode_derivatives, weighted_gradient


def declared_loss(lower: RecordedLoss) -> SampleLoss | None:
    """Return the declared sample losses if the loss is their weighted mean, else ``None``."""
    sample = lower.sample_loss
    return sample if sample is not None and sample.is_the_loss else None


def directional_derivatives(
    sample: SampleLoss,
    steps: Sequence[RecordedStep],
    weights: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> Pairs:
    """Return ``(l_i, <∇_w l_i, v>)`` per micro-batch from one pass of dual numbers."""

    def of(step: RecordedStep) -> Callable[[list[Tensor]], Samples]:
        return lambda duals: sample.samples(step, dict(zip(weights, duals, strict=True)))

    return forward_mode_derivatives([of(step) for step in steps], weights, vector)


def declared_products(
    sample: SampleLoss,
    steps: Sequence[RecordedStep],
    pairs: Pairs,
    upper_parameters: Sequence[Tensor],
) -> list[Tensor]:
    """Return ``∇_θ mean_i V_i(sg(l); θ) sg(d_i)``, averaged over micro-batches.

    Args:
        sample: The declared sample weights.
        steps: The micro-batches.
        pairs: ``l``, with its features, and ``d`` of each, (B,).
        upper_parameters: ``θ``.
    """

    def of(step: RecordedStep) -> Callable[[Samples], Tensor]:
        return lambda samples: sample.weights(samples, step)

    return weighted_gradient([of(step) for step in steps], pairs, upper_parameters)
