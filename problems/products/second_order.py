"""Second derivatives of the lower loss times a vector, four ways.

For the loss ``L`` of one recorded optimizer step (the mean over its micro-batches, at the problem's
present parameters ``w``) and a vector ``u`` along ``w``, each returns ``∂/∂x <∇_w L, u>`` for
``x`` among ``w`` and upper parameters ``θ``:

- ``exact``: differentiate the gradient's own graph;
- ``forward_over_reverse``: a dual-number pass whose backward pass carries tangents, the same
  numbers without a graph of the backward pass (Pearlmutter, "Fast Exact Multiplication by the
  Hessian", Neural Computation 1994; in meta-learning: Kemaev et al., "MixFlow-MG", ICML 2025,
  arXiv:2505.00793);
- ``finite_difference`` and ``one_sided``: from ordinary gradients
  (:mod:`.gradient_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..base import vectors
from ..recording.trajectory import RecordedStep, RecordedUpdate
from .evaluation import Evaluation, replayed_loss
from .gradient_differences import declares_its_loss, finite_difference, one_sided
from .sample_derivatives import forward_mode_derivatives, quiet_first_use

if TYPE_CHECKING:
    from ..problem import Problem

Products = Callable[
    ["Problem", Evaluation, RecordedUpdate, Sequence[Tensor], Sequence[Tensor], float],
    list[Tensor],
]


def exact(
    problem: Problem,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float = 0.0,
) -> list[Tensor]:
    """Differentiate the gradient's graph, one micro-batch at a time.

    For upper parameters of declared sample weights alone one pass of dual numbers does, where the
    network's operations have their formulas.
    """
    del alpha
    weights = evaluation.weights
    own = {id(p) for p in weights}
    if declares_its_loss(problem) and not any(id(t) in own for t in inputs):
        try:
            pairs = forward_mode_derivatives(problem, update.steps, weights, vector)
        except NotImplementedError:
            pass
        else:
            return problem.weight_products(update.steps, pairs, inputs)

    def one(step: RecordedStep) -> list[Tensor]:
        loss = replayed_loss(problem, step)
        return gradient_products(evaluation.gradient_graph(loss), vector, inputs)

    return mean_over_micro_batches(update.steps, one)


def gradient_products(
    gradient: Sequence[Tensor | None],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    keep: bool = False,
) -> list[Tensor]:
    """Return ``∂/∂x <g, u>`` for a gradient ``g`` with its graph."""
    used = [(g, u) for g, u in zip(gradient, vector, strict=True) if g is not None]
    used = [(g, u) for g, u in used if g.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in inputs]
    products = torch.autograd.grad(
        [g for g, _ in used], inputs, [u for _, u in used], retain_graph=keep, allow_unused=True
    )
    return vectors.fill_none(products, inputs)


def forward_over_reverse(
    problem: Problem,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float = 0.0,
) -> list[Tensor]:
    """Carry the tangent ``u`` through a forward and a backward pass."""
    del alpha
    network = _Loss(problem)
    names = {id(p): name for name, p in network.named_parameters()}
    upper = {id(t) for t in inputs} - {id(p) for p in evaluation.weights}

    def one(step: RecordedStep) -> list[Tensor]:
        step.random.restore()
        with forward_ad.dual_level():
            duals = {
                id(p): forward_ad.make_dual(p, u)  # type: ignore[no-untyped-call]
                for p, u in zip(evaluation.weights, vector, strict=True)
            }
            tensors: dict[str, Tensor] = {names[key]: dual for key, dual in duals.items()}
            tensors |= {name: b.clone() for name, b in network.named_buffers()}
            loss = torch.func.functional_call(network, tensors, (step.batch,))
            targets = [t if id(t) in upper else duals[id(t)] for t in inputs]
            gradient = torch.autograd.grad(loss, targets, allow_unused=True)
            return [_tangent(g, t) for g, t in zip(gradient, inputs, strict=True)]

    with quiet_first_use():
        return mean_over_micro_batches(update.steps, one)


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


def _tangent(gradient: Tensor | None, like: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(like)
    tangent = forward_ad.unpack_dual(gradient).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(like) if tangent is None else tangent.detach()


class _Loss(nn.Module):
    """The problem's network with its loss as output, for a functional call."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.network = problem.module
        self._problem = [problem]

    def forward(self, batch: Any) -> Tensor:
        problem = self._problem[0]
        return problem.loss_of(problem.training_step(batch))


PRODUCTS: Mapping[str, Products] = {
    "exact": exact,
    "forward_over_reverse": forward_over_reverse,
    "finite_difference": finite_difference,
    "one_sided": one_sided,
}
