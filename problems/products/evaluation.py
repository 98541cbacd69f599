"""Evaluations of a lower problem that leave no trace, and the derivative products built on them.

Throughout, ``L`` is the mean of the problem's loss over the micro-batches of its last optimizer
step (``problem.window``), with the random numbers that step drew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..kernels.precision import DTYPES, autocast, difference_step, full_precision
from ..kernels.twice_differentiable import TwiceDifferentiable, differentiable_twice
from ..state.buffers import preserved_buffers
from ..state.random_streams import RandomState

if TYPE_CHECKING:
    from ..problem import Problem
    from ..recording.trajectory import RecordedStep, RecordedUpdate


class Evaluation:
    """Evaluates the lower problem inside and leaves no trace, also after an exception.

    On leaving, random streams, buffers of every problem and ``requires_grad`` are as they were;
    ``.grad`` is never written. ::

        with Evaluation(problem, graph=False, in_full_precision=True) as evaluation:
            ...

    Args:
        problem: The lower problem.
        graph: Whether a graph runs through its parameters.
        in_full_precision: Compute without autocast.
        second_order: Choose kernels for being differentiated twice and forward.

    Attributes:
        weights: The parameters a hypergradient goes through.
        has_kinks: Whether a pass may meet operations with kinks; ``False`` once one met none.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        graph: bool,
        in_full_precision: bool,
        second_order: bool = False,
    ) -> None:
        self._held = problem.hold_parameters()
        self.weights = list(problem.meta_trainable_parameters())
        self.has_kinks = True
        self._problem = problem
        self._stack: ExitStack | None = None
        self._kernels: TwiceDifferentiable | None = None
        self._frozen = [] if graph else [p for p in self._candidates() if p.requires_grad]
        self._in_full_precision = in_full_precision
        self._second_order = second_order

    def _candidates(self) -> set[Tensor]:
        return {*self._problem.trainable_parameters(), *self.weights}

    def __enter__(self) -> Evaluation:
        self._streams = RandomState(self._problem.device)
        precision = self._problem.config.precision
        slots = self._problem.all_buffer_slots()
        if slots or precision != "fp32" or self._second_order:
            choose = full_precision if self._in_full_precision else autocast
            self._stack = ExitStack()
            self._stack.enter_context(preserved_buffers(slots))
            self._stack.enter_context(choose(precision, self._problem.device))
            if self._second_order:
                self._kernels = self._stack.enter_context(differentiable_twice())
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self

    def __exit__(self, *exception: object) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._problem.release_parameters(self._held)
        if self._stack is not None:
            self._stack.close()
        self._streams.restore()

    def gradient_graph(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """Return ``∇_w loss`` with its graph, to be differentiated, not read.

        Parts of it are zeros where computing values can be avoided.
        """
        with ExitStack() as stack:
            if self._kernels is not None:
                stack.enter_context(self._kernels.values_unread(self.weights))
            return torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)

    def inverse_step(self, vector: Sequence[Tensor], alpha: float, order: int = 2) -> Tensor:
        """Return ``1 / eps`` for a displacement ``eps v`` of length ``alpha``, wider in 16 bits.

        ``order`` is that of the difference's error in ``eps``.
        """
        precision = self._problem.config.precision
        dtype = self.weights[0].dtype if self.weights else torch.float32
        if not self._in_full_precision and precision != "fp32":
            dtype = DTYPES[precision]
        return vectors.norm(vector).add_(1e-15).div_(difference_step(alpha, dtype, order))


def replayed_loss(problem: Problem, step: RecordedStep) -> Tensor:
    """Return the loss of one recorded micro-batch, with the random numbers it was trained with."""
    step.random.restore()
    return problem.loss_of(problem.training_step(step.batch))


Losses = Callable[["Problem", "RecordedStep"], Tensor]


def window_gradient(
    problem: Problem, upper_parameters: Sequence[Tensor], losses: Losses = replayed_loss
) -> list[Tensor]:
    """Return ``∇_θ L`` at the problem's present parameters; one micro-batch's graph at a time."""
    total: list[Tensor] | None = None
    steps = require_recorded(problem).steps
    for step in steps:
        loss = losses(problem, step)
        gradient = _gradient(loss, upper_parameters)
        total = gradient if total is None else vectors.add(total, gradient)
    assert total is not None
    return total if len(steps) == 1 else vectors.scale(total, 1.0 / len(steps))


def require_recorded(problem: Problem) -> RecordedUpdate:
    """Return the last recorded optimizer step.

    Raises:
        HypergradientError: When there is none yet.
    """
    if not problem.trajectory.updates:
        raise HypergradientError(
            f"A hypergradient through problem {problem.name!r} was asked for before it took a "
            "step; run the engine, or step the lower problem first."
        )
    return problem.trajectory.updates[-1]


def _gradient(loss: Tensor, upper_parameters: Sequence[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in upper_parameters]
    return vectors.fill_none(
        torch.autograd.grad(loss, upper_parameters, allow_unused=True), upper_parameters
    )
