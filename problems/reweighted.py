"""Problems that declare their sample losses and sample weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import vectors
from .errors import ConfigurationError, LossError
from .hypergradients.base import Hypergradient
from .hypergradients.reweighting import Reweighting
from .implicit import ImplicitProblem
from .partial import reusable_activations, reuses_activations
from .trajectory import RecordedStep


class ReweightedProblem(ImplicitProblem):
    """A level trained on ``mean_i V_i(sg(l); θ) l_i``, weights by an upper problem.

    Because losses and weights are declared apart, the hypergradient needs no graph through the
    network at all and respects the stop-gradient ``sg``: ``Config(type="darts")``, the default,
    means :class:`~metaweight.problems.hypergradients.Reweighting` here. Give
    ``type=FiniteDifference()`` for a finite difference of the weighted loss, which does not respect
    it. ::

        class Classifier(ReweightedProblem):
            def sample_losses(self, batch):
                inputs, labels = batch
                return F.cross_entropy(self.module(inputs), labels, reduction="none")

            def sample_weights(self, losses, batch):
                return self.reweight(losses)

    The sample losses must depend on the upper problem through the weights only.
    """

    def sample_losses(self, batch: Any) -> Tensor:
        """Return one loss per sample, shape (B,) or (B, 1)."""
        raise LossError(
            f"Problem {self.name!r} has no sample_losses; define it in {type(self).__name__}."
        )

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        """Return one weight per sample, shape (B,) or (B, 1), computed with an upper problem.

        Args:
            losses: The sample losses, shape (B,), without a graph.
            batch: The batch they belong to.
        """
        raise LossError(
            f"Problem {self.name!r} has no sample_weights; define it in {type(self).__name__}."
        )

    def training_step(self, batch: Any) -> Tensor:
        """Return ``mean_i V_i(sg(l); θ) l_i``."""
        reuse = self.trajectory.keep_activations(
            lambda: reusable_activations(self, batch) if reuses_activations(self) else None
        )
        if reuse is None:
            losses = self.checked_losses(batch)
        else:
            losses = reuse.record(lambda: self.checked_losses(batch))
        self.trajectory.keep_losses(losses)
        return (self.checked_weights(losses.detach(), batch) * losses).mean()

    def weight_products(
        self,
        steps: Sequence[RecordedStep],
        pairs: Sequence[tuple[Tensor, Tensor]],
        wanted: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return ``∇_θ mean_i V_i(sg(l); θ) sg(d_i)``, averaged over micro-batches.

        Args:
            steps: The micro-batches.
            pairs: For each of them ``l`` and ``d``, both of shape (B,).
            wanted: ``θ``.
        """
        total = [torch.zeros_like(t) for t in wanted]
        for step, (losses, directional) in zip(steps, pairs, strict=True):
            weights = self.checked_weights(losses, step.batch)
            if weights.requires_grad:
                gradient = torch.autograd.grad(
                    (weights * directional).mean(), wanted, allow_unused=True
                )
                total = vectors.add(total, vectors.fill_none(gradient, wanted))
        return total if len(steps) == 1 else vectors.scale(total, 1.0 / len(steps))

    @property
    def declares_its_loss(self) -> bool:
        """Whether the loss is the declared weighted mean, rather than a ``training_step`` of its
        own."""
        return type(self).training_step is ReweightedProblem.training_step

    def checked_losses(self, batch: Any) -> Tensor:
        """Return the sample losses in single precision or better, shape (B,).

        Raises:
            LossError: For any other shape.
        """
        losses = self.sample_losses(batch)
        if losses.ndim == 0 or losses.numel() != losses.shape[0]:
            raise LossError(
                f"sample_losses of problem {self.name!r} returned shape {tuple(losses.shape)}; "
                "return one loss per sample, shape (B,), for instance with reduction='none'."
            )
        losses = losses.reshape(-1)
        return losses.float() if losses.dtype.itemsize < 4 else losses

    def checked_weights(self, losses: Tensor, batch: Any) -> Tensor:
        """Return the sample weights for given losses, shape (B,).

        Raises:
            LossError: For any other shape.
        """
        weights = self.sample_weights(losses, batch)
        if weights.ndim == 0 or weights.numel() != losses.numel():
            raise LossError(
                f"sample_weights of problem {self.name!r} returned shape {tuple(weights.shape)} "
                f"for {losses.numel()} losses; return one weight per sample, (B,) or (B, 1)."
            )
        return weights.reshape(-1)

    @property
    def hypergradient(self) -> Hypergradient:
        """How upper problems differentiate through this one."""
        config = self.config
        if config.type != "darts":
            return super().hypergradient
        if config.darts_multitask:
            raise ConfigurationError(
                f"Problem {self.name!r} is reweighted, and Config(type='darts', "
                "darts_multitask=True) would leave its parameters displaced; "
                "use type=FiniteDifference(multitask=True) if that is meant."
            )
        return Reweighting(alpha=config.darts_alpha)
