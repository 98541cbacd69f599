"""Second derivatives of the lower loss times a vector, three ways.

For the loss ``L`` of one recorded optimizer step (the mean over its micro-batches, at the problem's
present parameters ``w``) and a vector ``u`` along ``w``, each returns ``∂/∂x <∇_w L, u>`` for
``x`` among ``w`` and upper parameters ``θ``:

- ``exact``: differentiate the gradient's own graph;
- ``forward_over_reverse``: a dual-number pass whose backward pass carries tangents, the same
  numbers without a graph of the backward pass (Pearlmutter, "Fast Exact Multiplication by the
  Hessian", Neural Computation 1994; in meta-learning: Kemaev et al., "MixFlow-MG", ICML 2025,
  arXiv:2505.00793);
- ``finite_difference``: a central difference of two ordinary gradients. What the loss detaches
  moves with ``w`` here, unless the problem declares its sample losses and weights
  (:class:`~metaweight.problems.ReweightedProblem`): those are held where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import vectors
from ..trajectory import RecordedStep
from .products import Evaluation, replayed_loss
from .reweighting import central_derivatives, quiet_first_use, replayed_losses

if TYPE_CHECKING:
    from ..problem import Problem
    from ..reweighted import ReweightedProblem

Products = Callable[
    ["Problem", Evaluation, Sequence[RecordedStep], Sequence[Tensor], Sequence[Tensor], float],
    list[Tensor],
]


def exact(
    problem: Problem,
    evaluation: Evaluation,
    steps: Sequence[RecordedStep],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float = 0.0,
) -> list[Tensor]:
    """Differentiate the gradient's graph, one micro-batch at a time."""
    del alpha
    weights = evaluation.weights

    def one(step: RecordedStep) -> list[Tensor]:
        loss = replayed_loss(problem, step)
        gradient = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        return gradient_products(gradient, vector, inputs)

    return _mean(steps, one)


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
    steps: Sequence[RecordedStep],
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
        return _mean(steps, one)


def finite_difference(
    problem: Problem,
    evaluation: Evaluation,
    steps: Sequence[RecordedStep],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float = 0.01,
) -> list[Tensor]:
    """Return ``(∇_x L(w + eps u) - ∇_x L(w - eps u)) / (2 eps)`` with ``||eps u|| = alpha``."""
    from ..reweighted import ReweightedProblem  # noqa: PLC0415 (a problem knows its algorithms)

    inverse_eps = evaluation.inverse_step(vector, alpha)
    if isinstance(problem, ReweightedProblem) and problem.declares_its_loss:
        return _reweighted_difference(problem, evaluation, steps, vector, inputs, inverse_eps)
    shift = vectors.divide(vector, inverse_eps)
    own = {id(p) for p in evaluation.weights}
    frozen = [] if any(id(t) in own for t in inputs) else evaluation.weights

    def one(step: RecordedStep) -> list[Tensor]:
        loss = replayed_loss(problem, step)
        if not loss.requires_grad:
            return [torch.zeros_like(t) for t in inputs]
        return vectors.fill_none(torch.autograd.grad(loss, inputs, allow_unused=True), inputs)

    with _without_gradient(frozen), vectors.Displacement(evaluation.weights) as weights:
        weights.move(shift)
        plus = _mean(steps, one)
        weights.move(shift, -2.0)
        minus = _mean(steps, one)
    return vectors.scale(vectors.add(plus, minus, alpha=-1.0), inverse_eps / 2)


def _reweighted_difference(
    problem: ReweightedProblem,
    evaluation: Evaluation,
    steps: Sequence[RecordedStep],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    inverse_eps: Tensor,
) -> list[Tensor]:
    """The same with the sample weights held, as the stop-gradient says.

    The two passes that give ``H u`` give the directional derivatives of the sample losses as well,
    and with them the mixed product.
    """
    own = {id(p) for p in evaluation.weights}
    below = [t for t in inputs if id(t) in own]
    above = [t for t in inputs if id(t) not in own]
    if not below:
        pairs = central_derivatives(problem, steps, evaluation.weights, vector, inverse_eps)
        return problem.weight_products(steps, pairs, above)
    shift = vectors.divide(vector, inverse_eps)
    plus: list[Tensor] = []
    minus: list[Tensor] = []
    total = [torch.zeros_like(t) for t in below]
    with vectors.Displacement(evaluation.weights) as weights:
        for move, losses, sign in ((1.0, plus, 1.0), (-2.0, minus, -1.0)):
            weights.move(shift, move)
            for step in steps:
                sample = replayed_losses(problem, step)
                losses.append(sample.detach())
                with torch.no_grad():
                    held = sample if step.losses is None else step.losses
                    fixed = problem.checked_weights(held.detach(), step.batch)
                gradient = torch.autograd.grad((fixed * sample).mean(), below, allow_unused=True)
                total = vectors.add(total, vectors.fill_none(gradient, below), alpha=sign)
    hessian = vectors.scale(total, inverse_eps / (2 * len(steps)))
    half = inverse_eps / 2
    pairs = [
        ((p + m) / 2 if step.losses is None else step.losses, (p - m) * half)
        for step, p, m in zip(steps, plus, minus, strict=True)
    ]
    mixed = problem.weight_products(steps, pairs, above)
    found = {id(t): value for t, value in zip([*below, *above], [*hessian, *mixed], strict=True)}
    return [found[id(t)] for t in inputs]


def _mean(
    steps: Sequence[RecordedStep], one: Callable[[RecordedStep], list[Tensor]]
) -> list[Tensor]:
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


@contextmanager
def _without_gradient(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let no graph run through the parameters."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


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
}
