"""Interface of a lower problem's recorded loss, and gradients of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..base import vectors
from ..base.backward import gradients
from ..base.errors import HypergradientError
from ..recording.recorded_steps import RecordedStep, RecordedUpdate
from ..recording.samples import Samples
from ..recording.trajectory import Trajectory
from .evaluation import Evaluation


class SampleLoss(Protocol):
    """The sample losses ``l_i(w)`` and sample weights ``V_i(l; θ)`` that a problem declares.

    Weights may depend on features, too, which :class:`Samples` hold beside the losses.
    """

    @property
    def is_the_loss(self) -> bool:
        """Whether the loss is ``mean_i V_i(sg(l); θ) l_i``, without further terms."""

    def samples(
        self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None
    ) -> Samples:
        """Return ``l`` of a recorded micro-batch, computed with its recorded random numbers.

        Args:
            step: The micro-batch.
            instead: Tensors that replace parameters; the other parameters of the network are then
                constants, and its buffers only change their values, without a graph.
        """

    def recorded(self, step: RecordedStep) -> Samples | None:
        """Return ``l`` as the training step computed it; ``None`` if it was not recorded."""

    def weights(self, samples: Samples, step: RecordedStep) -> Tensor:
        """Return ``V(l; θ)``, shape (B,), for samples without a graph, with the random numbers
        that follow on their losses."""


class RecordedLoss(Protocol):
    """The loss of the recorded steps of a lower problem."""

    @property
    def name(self) -> str:
        """The problem's name, for messages."""

    @property
    def weights(self) -> list[Tensor]:
        """The parameters ``w`` the hypergradient goes through."""

    @property
    def trajectory(self) -> Trajectory:
        """The recorded optimizer steps."""

    @property
    def number_of_processes(self) -> int:
        """Number of processes that train it together."""

    @property
    def sample_loss(self) -> SampleLoss | None:
        """The declared sample losses and weights, if any."""

    @property
    def has_plain_gradients(self) -> bool:
        """Whether a step's gradient is that of its loss alone: no callback changes it, and it has
        no hypergradient through problems below."""

    def refuse_if(self, condition: Tensor, error: Callable[[], Exception]) -> None:
        """Raise an error if a condition holds, a 0-dim tensor, for which the host waits; in steps
        that are captured, once they have been taken."""

    def loss(self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None) -> Tensor:
        """Return the loss of a recorded micro-batch at the present parameters, a 0-dim tensor.

        It is the loss that is minimised, negated where the optimizer maximises. It draws the
        random numbers of the step.

        Args:
            step: The micro-batch.
            instead: Tensors that replace parameters; buffers then only change their values.
        """

    def evaluation(
        self, *, graph: bool = True, in_full_precision: bool = True, second_order: bool = False
    ) -> Evaluation:
        """Return a context in which losses are evaluated without side effects.

        Args:
            graph: Whether the problem's parameters require a gradient.
            in_full_precision: Compute without autocast.
            second_order: Use kernels that can be differentiated twice and in forward mode.
        """

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of a loss, zeros where it does not depend on an input.

        With several processes it is that of this process; for sharded parameters the mean.
        """

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over processes; all call it in the same order."""


def require_recorded(lower: RecordedLoss) -> RecordedUpdate:
    """Return the last recorded optimizer step.

    Raises:
        HypergradientError: When none is recorded yet.
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
        lower: The lower problem.
        inputs: The tensors to differentiate by.
        losses: Computes the loss of a micro-batch; ``lower.loss`` by default.
    """
    compute = losses or lower.loss
    steps = require_recorded(lower).steps
    if len(steps) == 1:
        return lower.gradients(compute(steps[0]), inputs)
    return mean_over_micro_batches(steps, lambda step: lower.gradients(compute(step), inputs))


def gradient_of(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss, zeros where it does not depend on an input."""
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return vectors.fill_none(gradients(loss, inputs), inputs)


def mean_over_micro_batches(
    steps: Sequence[RecordedStep], one: Callable[[RecordedStep], list[Tensor]]
) -> list[Tensor]:
    """Return the mean of ``one(step)`` over ``steps``."""
    if len(steps) == 1:
        return one(steps[0])
    total: list[Tensor] | None = None
    for step in steps:
        found = one(step)
        total = found if total is None else vectors.add(total, found)
    assert total is not None
    return vectors.scale(total, 1.0 / len(steps))
