"""Products of second derivatives of a recorded step's loss with a vector, by four methods.

``L`` is the loss of one recorded optimizer step, the mean over its micro-batches, at the present
parameters ``w``. For a vector ``u`` of the shape of ``w``, each method returns ``∂/∂x <∇_w L, u>``
for ``x`` in ``w`` or the upper parameters ``θ``: the first two by :mod:`.second_derivatives`, the
others from gradients (:mod:`.gradient_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..recording.recorded_steps import RecordedStep, RecordedUpdate
from . import second_derivatives
from .declared_loss import declared_loss, declared_products, directional_derivatives
from .evaluation import Evaluation
from .gradient_differences import finite_difference, one_sided
from .recorded_loss import RecordedLoss, mean_over_micro_batches
from .second_derivatives import double_backward

Products = Callable[
    [RecordedLoss, Evaluation, RecordedUpdate, Sequence[Tensor], Sequence[Tensor], float],
    list[Tensor],
]


def exact(
    lower: RecordedLoss,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float = 0.0,
) -> list[Tensor]:
    """Differentiate the gradient's graph, one micro-batch at a time.

    For declared sample weights and upper parameters only, one pass of dual numbers is enough, if
    the network's operations have forward-mode formulas.
    """
    del alpha
    own = {id(p) for p in evaluation.weights}
    sample = declared_loss(lower)
    if sample is not None and not any(id(t) in own for t in inputs):
        try:
            pairs = directional_derivatives(sample, update.steps, evaluation.weights, vector)
        except NotImplementedError:
            pass
        else:
            return declared_products(sample, update.steps, pairs, inputs)

    def one(step: RecordedStep) -> list[Tensor]:
        return double_backward(evaluation.gradient_graph(lower.loss(step)), vector, inputs)

    return mean_over_micro_batches(update.steps, one)


def forward_over_reverse(
    lower: RecordedLoss,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float = 0.0,
) -> list[Tensor]:
    """Propagate the tangent ``u`` through a forward and a backward pass."""
    del alpha
    weights = evaluation.weights

    def one(step: RecordedStep) -> list[Tensor]:
        return second_derivatives.forward_over_reverse(
            lambda duals: lower.loss(step, dict(zip(weights, duals, strict=True))),
            weights,
            vector,
            inputs,
        )

    return mean_over_micro_batches(update.steps, one)


PRODUCTS: Mapping[str, Products] = {
    "exact": exact,
    "forward_over_reverse": forward_over_reverse,
    "finite_difference": finite_difference,
    "one_sided": one_sided,
}

DIFFERENCES = ("finite_difference", "one_sided")
"""The methods that displace the parameters, by ``alpha``."""
