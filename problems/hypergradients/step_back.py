"""Backward pass of an unrolled hypergradient through one recorded optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..base import vectors
from ..kernels.compilation import uncompiled
from ..products.evaluation import Evaluation
from ..products.recorded_loss import mean_over_micro_batches
from ..products.second_derivatives import double_backward
from ..products.second_order import DIFFERENCES, PRODUCTS
from ..recording.recorded_steps import RecordedStep, RecordedUpdate
from ..unrolling import restore_start, update_adjoint
from ..unrolling.sgd_adjoint import Cotangents, Number, StateCotangents
from .base import LowerProblem


class StepBack:
    """Differentiates backwards through recorded steps, the last one first.

    Args:
        product: How products with second derivatives are computed, a name in ``PRODUCTS``.
        length: Length of the displacement of a difference.
        lower: The lower problem.
        evaluation: The context in which losses are evaluated.
        updates: The recorded steps.
        upper_parameters: ``θ``.
        to_start: Whether the cotangent of the start of the loop is needed.
    """

    def __init__(
        self,
        product: str,
        length: float,
        lower: LowerProblem,
        evaluation: Evaluation,
        updates: Sequence[RecordedUpdate],
        upper_parameters: Sequence[Tensor],
        to_start: bool,
    ) -> None:
        self._product = PRODUCTS[product]
        self._is_difference = product in DIFFERENCES
        self._length = length
        self._lower = lower
        self._step = lower.optimizer_step
        self._evaluation = evaluation
        self._updates = updates
        self._upper = list(upper_parameters)
        self._to_start = to_start
        self._keeps_graphs = len(lower.paths) > 1
        self._states: StateCotangents = {}

    def __call__(
        self, number: int, cotangents: Cotangents
    ) -> tuple[Cotangents, list[list[Tensor]]]:
        """Return the cotangents of the weights before a step, and its terms of ``dF/dθ``."""
        update, weights = self._updates[number], self._evaluation.weights
        # The start of a loop is a constant unless an upper problem learns it.
        goes_on = number > 0 or self._to_start
        adjoint = update_adjoint(
            self._step,
            update,
            cotangents,
            self._states,
            self._upper,
            gradients_only=not goes_on,
        )
        inputs = [*weights, *self._upper] if goes_on else self._upper
        along = vectors.fill_none([adjoint.gradients.get(p) for p in weights], weights)
        products, factor = self._products(update, along, inputs, adjoint.factor)
        products = _beside(products, along)
        if goes_on:
            own = self._lower.mean(products[: len(weights)])
            below = [adjoint.parameters[p] for p in weights]
            if number == len(self._updates) - 1:
                # The first cotangents may belong to the caller.
                below = vectors.add(below, own, factor)
            else:
                vectors.add_in_place(below, own, factor)
            cotangents = dict(zip(weights, below, strict=True))
            self._states = adjoint.states
        terms = [_times(products[len(inputs) - len(self._upper) :], factor)]
        return cotangents, [*terms, adjoint.upper_parameters] if adjoint.upper_parameters else terms

    def _products(
        self,
        update: RecordedUpdate,
        along: Sequence[Tensor],
        inputs: Sequence[Tensor],
        factor: Number,
    ) -> tuple[list[Tensor], Number]:
        """Return products of ``factor * along``, an average over micro-batches, as a vector and a
        number to multiply it by."""
        if self._is_difference and not is_kept(update):
            # Differences are not linear in ``along``.
            along, factor = _times(along, factor), 1.0
        if not any(step.hooked for step in update.steps):
            return self._products_of(update, along, inputs), factor

        def one(step: RecordedStep) -> list[Tensor]:
            u, terms = list(along), [torch.zeros_like(t) for t in self._upper]
            for place, p in enumerate(self._evaluation.weights):
                if p in step.hooked:
                    u[place], more = step.hooked[p].vjp(along[place], self._upper)
                    terms = vectors.add(terms, more)
            # The recorded gradient is what the hooks made of it.
            alone = replace(update, steps=[step], moment=None, share={})
            products = self._products_of(alone, u, inputs)
            # A hook is called on its micro-batch's share of the gradient: a sum, and no mean.
            own = vectors.scale(terms, len(update.steps))
            first = len(products) - len(own)
            return [*products[:first], *vectors.add(products[first:], own)]

        return mean_over_micro_batches(update.steps, one), factor

    def _products_of(
        self, update: RecordedUpdate, along: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        lower, evaluation = self._lower, self._evaluation
        if is_kept(update):
            return _kept_products(evaluation, update, along, inputs, keep=self._keeps_graphs)
        restore_start(update)
        if not self._is_difference:
            return self._product(lower, evaluation, update, along, inputs, 0.0)
        # A compiled pass shows no activation pattern.
        with uncompiled():
            return self._product(lower, evaluation, update, along, inputs, self._length)


def is_kept(update: RecordedUpdate) -> bool:
    """Return whether the graphs of a step's gradients were kept and can still be used."""
    return all(step.graph is not None and step.graph.is_intact for step in update.steps)


def _beside(products: list[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """Return products in memory of their own: a derivative that hands a tensor on gives what the
    product was taken along, which is written to next."""
    taken = {t.untyped_storage()._cdata for t in along}
    return [t.clone() if t.untyped_storage()._cdata in taken else t for t in products]


def _times(vector: Sequence[Tensor], factor: Number) -> list[Tensor]:
    one = not isinstance(factor, Tensor) and factor == 1.0
    return list(vector) if one else vectors.scale(vector, factor)


def _kept_products(
    evaluation: Evaluation,
    update: RecordedUpdate,
    along: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    keep: bool,
) -> list[Tensor]:
    def one(step: RecordedStep) -> list[Tensor]:
        graph = step.graph
        assert graph is not None
        gradient = [graph.gradients.get(p) for p in evaluation.weights]
        places = [graph.parameters.get(t, t) for t in inputs]
        products = double_backward(gradient, along, places, keep=keep)
        if not keep:
            step.graph = None
        return products

    return mean_over_micro_batches(update.steps, one)
