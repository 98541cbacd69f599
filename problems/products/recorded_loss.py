"""The loss of recorded steps, as far as products with its derivatives see a lower problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..recording.trajectory import RecordedStep, RecordedUpdate, Trajectory
from .evaluation import Evaluation


class SampleLoss(Protocol):
    """The sample losses ``l_i(w)`` and sample weights ``V_i(l; θ)`` that a problem declares."""

    @property
    def is_the_loss(self) -> bool:
        """Whether the loss is ``mean_i V_i(sg(l); θ) l_i``, and not something else besides."""

    def losses(self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``l`` of a recorded micro-batch, shape (B,), with the random numbers it drew.

        Args:
            step: The micro-batch.
            instead: Tensors to compute with in the place of parameters; those of the network that
                are not replaced are then constants, and its buffers stay as they are.
        """

    def weights(self, losses: Tensor, step: RecordedStep) -> Tensor:
        """Return ``V(l; θ)``, shape (B,), for sample losses of shape (B,) without a graph."""


class RecordedLoss(Protocol):
    """The loss of the steps a lower problem has recorded."""

    @property
    def name(self) -> str:
        """What to call the problem in a message."""

    @property
    def weights(self) -> list[Tensor]:
        """The parameters ``w`` the hypergradient goes through."""

    @property
    def trajectory(self) -> Trajectory:
        """The last optimizer steps, as far as they were asked to be recorded."""

    @property
    def sample_loss(self) -> SampleLoss | None:
        """The sample losses and weights the problem declares, if it does."""

    @property
    def has_plain_gradients(self) -> bool:
        """Whether a step's gradient is that of its loss alone: changed by no callback, and with no
        hypergradient through problems further below."""

    def loss(self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None) -> Tensor:
        """Return the loss of a recorded micro-batch at the present parameters, as a 0-dim tensor.

        It draws the random numbers that the step drew.

        Args:
            step: The micro-batch.
            instead: Tensors to compute with in the place of parameters; buffers then stay as they
                are.
        """

    def evaluation(
        self, *, graph: bool = True, in_full_precision: bool = True, second_order: bool = False
    ) -> Evaluation:
        """Return a context in which losses are evaluated, and which leaves no trace.

        Args:
            graph: Whether a graph runs through the problem's parameters.
            in_full_precision: Compute without autocast.
            second_order: Choose kernels for being differentiated twice and forward.
        """

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of a loss, zeros where it does not depend on an input.

        Of several processes each finds its own, but by sharded parameters their mean.
        """

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over processes; all of them ask for the same in turn."""


def require_recorded(lower: RecordedLoss) -> RecordedUpdate:
    """Return the last recorded optimizer step.

    Raises:
        HypergradientError: When there is none yet.
    """
    updates = lower.trajectory.updates
    if not updates:
        raise HypergradientError(
            f"A hypergradient through problem {lower.name!r} was asked for before it took a "
            "step; run the engine, or step the lower problem first."
        )
    return updates[-1]


Losses = Callable[[RecordedStep], Tensor]


def window_gradient(
    lower: RecordedLoss, inputs: Sequence[Tensor], losses: Losses | None = None
) -> list[Tensor]:
    """Return the gradient of the last step's mean loss, one micro-batch's graph at a time.

    Args:
        lower: Whose loss it is.
        inputs: What to differentiate by.
        losses: How the loss of a micro-batch is computed, if not by ``lower.loss``.
    """
    compute = losses or lower.loss
    steps = require_recorded(lower).steps
    return mean_over_micro_batches(steps, lambda step: lower.gradients(compute(step), inputs))


def gradient_of(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss, zeros where it does not depend on an input."""
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return vectors.fill_none(torch.autograd.grad(loss, inputs, allow_unused=True), inputs)


def mean_over_micro_batches(
    steps: Sequence[RecordedStep], one: Callable[[RecordedStep], list[Tensor]]
) -> list[Tensor]:
    """Return the mean of what ``one`` finds for each."""
    total: list[Tensor] | None = None
    for step in steps:
        found = one(step)
        total = found if total is None else vectors.add(total, found)
    assert total is not None
    return total if len(steps) == 1 else vectors.scale(total, 1.0 / len(steps))
