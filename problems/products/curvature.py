"""Products with second derivatives of the lower loss, from graphs of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..base import vectors
from ..recording.recorded_steps import RecordedStep
from .evaluation import Evaluation
from .recorded_loss import RecordedLoss, require_recorded
from .second_derivatives import double_backward


class Curvature:
    """Products with second derivatives of ``L`` from graphs of its gradient.

    There is one graph per micro-batch. A product goes through one graph at a time, so that its
    extra memory is that of one micro-batch. With several processes, each has the graphs of its own
    micro-batches; products by ``w`` are means over processes, those by ``θ`` are not averaged.

    Args:
        losses: The loss of each micro-batch, computed on demand.
        evaluation: The context of the losses.
        mean: Averages over processes.
        alone: Whether there is one process.
    """

    def __init__(
        self,
        losses: Iterable[Tensor],
        evaluation: Evaluation,
        mean: Callable[[Sequence[Tensor]], list[Tensor]],
        *,
        alone: bool,
    ) -> None:
        self.weights = evaluation.weights
        self._mean = mean
        self._alone = alone
        self._graphs = [_gradient_graph(loss, evaluation) for loss in losses]

    def hessian(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """Return ``∂²L/∂w∂w · v``."""
        return self._mean(self._products(vector, self.weights))

    def mixed(self, vector: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        """Return ``∂²L/∂θ∂w · v``."""
        return self._products(vector, wanted)

    def both(
        self, vector: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return ``∂²L/∂w∂w · v`` and ``∂²L/∂θ∂w · v`` at the cost of the first."""
        products = self._products(vector, [*self.weights, *wanted])
        hessian = self._mean(products[: len(self.weights)])
        return hessian, products[len(self.weights) :]

    def reached(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """Return ``v`` with 0 for parameters that no graph of a gradient is of, in any process.

        Their rows of ``∂²L/∂w∂w`` and columns of ``∂²L/∂θ∂w`` are 0: no product reduces such an
        entry of ``v``, and none depends on it.
        """
        missing = [i for i in range(len(vector)) if not any(_has_graph(g, i) for g in self._graphs)]
        if self._alone:
            lacking = set(missing)
            return [torch.zeros_like(t) if i in lacking else t for i, t in enumerate(vector)]
        present = vector[0].new_ones(len(vector))
        if missing:
            present[missing] = 0.0
        (present,) = self._mean([present])
        places = zip(present.unbind(), vector, strict=True)
        return [torch.where(place.to(t.device) == 0, torch.zeros_like(t), t) for place, t in places]

    def _products(self, vector: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(t) for t in inputs]
        for gradient in self._graphs:
            if gradient:
                found = double_backward(gradient, vector, inputs, keep=True)
                total = vectors.add(total, found)
        return total if len(self._graphs) == 1 else vectors.scale(total, 1.0 / len(self._graphs))


def _gradient_graph(loss: Tensor, evaluation: Evaluation) -> Sequence[Tensor | None]:
    """Return ``∇_w loss`` with its graph; empty if the loss has none."""
    return evaluation.gradient_graph(loss) if loss.requires_grad else ()


def _has_graph(gradient: Sequence[Tensor | None], place: int) -> bool:
    found = gradient[place] if gradient else None
    return found is not None and found.requires_grad


@contextmanager
def curvature(
    lower: RecordedLoss, steps: Sequence[RecordedStep] | None = None
) -> Iterator[Curvature]:
    """Yield second-derivative products of the lower loss at its present parameters.

    Inside, the graphs of all micro-batches stay in memory.

    Args:
        lower: The lower problem.
        steps: The micro-batches; by default those of the last step.
    """
    steps = require_recorded(lower).steps if steps is None else steps
    with lower.evaluation(graph=True, in_full_precision=True, second_order=True) as evaluation:
        losses = (lower.loss(step) for step in steps)
        yield Curvature(losses, evaluation, lower.mean, alone=lower.number_of_processes == 1)
