"""Products with second derivatives of the lower loss, from recorded graphs of its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import vectors
from ..base.reduction import Reduction
from .evaluation import Evaluation, replayed_loss, require_recorded

if TYPE_CHECKING:
    from ..problem import Problem


class Curvature:
    """Products with second derivatives of ``L`` from recorded graphs of its gradient.

    There is a graph for every micro-batch, and a product goes through one after another: what it
    needs on the way is that of one micro-batch. Of several processes each has the graphs of its own
    micro-batches; products along ``w`` are means over all, those along ``θ`` this one's share.

    Args:
        losses: The loss of each micro-batch, computed as it is asked for.
        evaluation: What they are computed in.
        reduction: Averages over processes.
    """

    def __init__(
        self, losses: Iterable[Tensor], evaluation: Evaluation, reduction: Reduction
    ) -> None:
        self.weights = evaluation.weights
        self._reduction = reduction
        self._graphs = [_gradient_graph(loss, evaluation) for loss in losses]

    def hessian(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """Return ``∂²L/∂w∂w · v``."""
        return self._reduction.mean(self._products(vector, self.weights))

    def mixed(self, vector: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        """Return ``∂²L/∂θ∂w · v``."""
        return self._products(vector, wanted)

    def both(
        self, vector: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return ``∂²L/∂w∂w · v`` and ``∂²L/∂θ∂w · v`` for the price of the first."""
        products = self._products(vector, [*self.weights, *wanted])
        hessian = self._reduction.mean(products[: len(self.weights)])
        return hessian, products[len(self.weights) :]

    def _products(self, vector: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(t) for t in inputs]
        for gradient, positions in self._graphs:
            if gradient:
                along = [vector[i] for i in positions]
                found = torch.autograd.grad(
                    gradient, inputs, along, retain_graph=True, allow_unused=True
                )
                total = vectors.add(total, vectors.fill_none(found, inputs))
        return total if len(self._graphs) == 1 else vectors.scale(total, 1.0 / len(self._graphs))


def _gradient_graph(loss: Tensor, evaluation: Evaluation) -> tuple[list[Tensor], list[int]]:
    """Return the parts of ``∇_w loss`` that are no constants, and which weights they belong to."""
    if not loss.requires_grad:
        return [], []
    gradient = evaluation.gradient_graph(loss)
    used = [(g, i) for i, g in enumerate(gradient) if g is not None and g.requires_grad]
    return [g for g, _ in used], [i for _, i in used]


@contextmanager
def curvature(problem: Problem) -> Iterator[Curvature]:
    """Yield second-derivative products of the lower loss at its present parameters.

    The graphs of the whole window are held while inside.
    """
    steps = require_recorded(problem).steps
    with Evaluation(problem, graph=True, in_full_precision=True, second_order=True) as evaluation:
        losses = (replayed_loss(problem, step) for step in steps)
        yield Curvature(losses, evaluation, problem.processes)
