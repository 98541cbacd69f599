"""Products with second derivatives of the lower loss, from recorded graphs of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..base import vectors
from .evaluation import Evaluation
from .recorded_loss import RecordedLoss, require_recorded
from .second_derivatives import double_backward


class Curvature:
    """Products with second derivatives of ``L`` from recorded graphs of its gradient.

    There is a graph for every micro-batch, and a product goes through one after another: what it
    needs on the way is that of one micro-batch. Of several processes each has the graphs of its own
    micro-batches; products along ``w`` are means over all, those along ``θ`` this one's share.

    Args:
        losses: The loss of each micro-batch, computed as it is asked for.
        evaluation: What they are computed in.
        mean: Averages over processes.
    """

    def __init__(
        self,
        losses: Iterable[Tensor],
        evaluation: Evaluation,
        mean: Callable[[Sequence[Tensor]], list[Tensor]],
    ) -> None:
        self.weights = evaluation.weights
        self._mean = mean
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
        """Return ``∂²L/∂w∂w · v`` and ``∂²L/∂θ∂w · v`` for the price of the first."""
        products = self._products(vector, [*self.weights, *wanted])
        hessian = self._mean(products[: len(self.weights)])
        return hessian, products[len(self.weights) :]

    def _products(self, vector: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(t) for t in inputs]
        for gradient in self._graphs:
            if gradient:
                found = double_backward(gradient, vector, inputs, keep=True)
                total = vectors.add(total, found)
        return total if len(self._graphs) == 1 else vectors.scale(total, 1.0 / len(self._graphs))


def _gradient_graph(loss: Tensor, evaluation: Evaluation) -> Sequence[Tensor | None]:
    """Return ``∇_w loss`` with its graph; nothing where it has none."""
    return evaluation.gradient_graph(loss) if loss.requires_grad else ()


@contextmanager
def curvature(lower: RecordedLoss) -> Iterator[Curvature]:
    """Yield second-derivative products of the lower loss at its present parameters.

    The graphs of the last step's micro-batches are held while inside.
    """
    steps = require_recorded(lower).steps
    with lower.evaluation(graph=True, in_full_precision=True, second_order=True) as evaluation:
        yield Curvature((lower.loss(step) for step in steps), evaluation, lower.mean)
