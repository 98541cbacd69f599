"""First-order hypergradients from a penalised lower problem.

The upper loss enters by its gradient ``v = ∂F/∂w``. With the lower loss ``L`` and a strength ``ρ``,
let ``z`` minimise ``L(w)`` and ``y`` minimise ``L(w) + <v, w> / ρ``. Then ``y - z`` is
``-H⁻¹ v / ρ`` up to ``O(1/ρ²)``, and so ::

    ρ (∇_θ L(y) - ∇_θ L(z))  =  -(∂²L/∂θ∂w) H⁻¹ v + O(1/ρ)

No second derivative is taken, so it goes with networks and kernels that can be differentiated only
once, such as fused attention.

Sources: F2SA, Kwon et al., "A Fully First-Order Method for Stochastic Bilevel Optimization", ICML
2023 (arXiv:2301.10945); Shen, Chen, "On Penalty-based Bilevel Gradient Descent Method", ICML 2023
(arXiv:2302.05185); BOME, Ye et al., "BOME! Bilevel Optimization Made Easy: A Simple First-Order
Approach", NeurIPS 2022 (arXiv:2209.08709).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base import vectors
from ..base.displacement import Displacement
from ..base.errors import ConfigurationError, HypergradientError
from ..base.settings import is_number, is_positive, require_choice, require_count
from ..products.declared_loss import declared_loss, declared_products
from ..products.recorded_loss import SampleLoss, require_recorded, window_gradient
from ..recording.samples import Samples
from .base import Hypergradient, LowerProblem, require_finite
from .product import Approximation, Product, Status

FORMS = ("f2sa", "bome")


@dataclass(frozen=True)
class Penalty(Hypergradient):
    """``ρ (∇_θ L(y) - ∇_θ L(z))`` from first derivatives alone.

    ``L`` is the loss of the last optimizer step's micro-batches with their random numbers, without
    the optimizer's weight decay. The sample weights of a
    :class:`~metaweight.problems.ReweightedProblem` are held fixed while ``w`` moves, as their
    stop-gradient says. In other problems, what the loss detaches changes with ``w``.

    - ``"f2sa"``: ``z`` and ``y`` by ``steps`` gradient steps each from the present ``w``. For
      quadratic ``L`` without momentum this is the Neumann series
      ``lr Σ_{k<steps} (I - lr H)^k v`` for ``H⁻¹ v``, for any strength; otherwise the error is
      ``O(1/ρ)``. ``2 steps + 2`` forward and backward passes.
    - ``"bome"``: ``z`` by ``steps`` gradient steps from ``w``, and ``y = z - v / ρ`` by one step on
      the upper loss. The factor of the difference is not ``ρ`` but BOME's weight of the
      value-function gap ``q(y) = L(y) - L(z)``, ``λ = max(-<v, ∇q> / ||∇q||², 0)``, for which a
      step along ``v + λ ∇q`` does not change the gap. The product tends to ``-(∂²L/∂θ∂w) c v``
      with ``c = <v, Hv> / ||Hv||²``, the multiple of ``v`` with the smallest residual of
      ``H x = v``; 0 where ``L`` has negative curvature along ``v``. ``steps + 2`` passes.

    BOME itself moves ``θ`` and ``w`` together. Here ``w`` is not moved; ``∇q`` is
    ``∇_w L(y) - ∇_w L(z)``, without the gradient at ``z`` (0 at a minimum), so that ``v = 0`` gives
    0; and the barrier that closes the gap is omitted, since the lower problem's steps close it.

    The status holds the residual ``||H x - v|| / ||v||`` at no extra cost; above 1, ``lr`` is too
    large.

    Args:
        strength: ``ρ`` in scaled units: ``1 / strength`` bounds ``||y - z||`` for convex ``L``
            (larger in 16 bits). That is ``ρ = strength ||v|| lr steps / (1 - momentum)``, and
            ``strength ||v||`` for ``"bome"``. A larger strength lowers the error, up to some
            thousands in single precision, where rounding dominates.
        steps: Gradient steps of each solve.
        lr: Learning rate of the gradient steps; by default the present ones of the lower optimizer.
        momentum: Momentum of the gradient steps (heavy ball).
        form: ``"f2sa"`` or ``"bome"``.
    """

    strength: float = 1000.0
    steps: int = 10
    lr: float | None = None
    momentum: float = 0.0
    form: str = "f2sa"

    def __post_init__(self) -> None:
        require_choice("Penalty", "form", self.form, FORMS)
        if not is_positive(self.strength):
            raise ConfigurationError(
                f"Penalty(strength={self.strength!r}) must be positive and finite; 1000 is the "
                "default."
            )
        require_count("Penalty", "steps", self.steps, least=1)
        if self.lr is not None and not is_positive(self.lr):
            raise ConfigurationError(
                f"Penalty(lr={self.lr!r}) must be positive and finite; leave it out for the lower "
                "problem's own learning rate."
            )
        if not is_number(self.momentum, least=0) or self.momentum >= 1:
            raise ConfigurationError(
                f"Penalty(momentum={self.momentum}) must be at least 0 and below 1."
            )

    def passes(self, lower: LowerProblem) -> str:
        del lower
        number = 2 * self.steps + 2 if self.form == "f2sa" else self.steps + 2
        return f"{number} forward and {number} backward passes"

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        del lower
        return True

    def check(self, lower: LowerProblem) -> None:
        optimizer = lower.optimizer_step.optimizer
        groups = [] if optimizer is None else optimizer.param_groups
        if self.lr is None and not all("lr" in group for group in groups or [{}]):
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for Penalty() but has no optimizer with a learning "
                "rate to take over; give Penalty(lr=...)."
            )

    def approximation(self, lower: LowerProblem) -> Approximation:
        return Approximation(
            alpha=1 / self.strength,
            setting="1 / strength",
            with_alpha=lambda alpha: replace(self, strength=1 / alpha),
            moves_detached=declared_loss(lower) is None,
        )

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        require_recorded(lower)
        with (
            lower.evaluation(graph=True, in_full_precision=True) as evaluation,
            evaluation.compared() as rewind,
        ):
            weights = evaluation.weights
            rates = self._rates(lower, weights)
            reach = max(rates) * self.steps / (1 - self.momentum) if self.form == "f2sa" else 1.0
            inverse_eps = evaluation.inverse_step(vector, 1 / self.strength, order=1) * reach
            push = vectors.divide(vector, inverse_eps)
            loss = _lower_loss(lower, weights, rewind)
            with Displacement(weights) as place:
                self._minimise(loss, place, rates)
                at_z = loss.measure(upper_parameters)
                if self.form == "bome":
                    place.move(push, -1.0)
                    at_y = loss.measure(upper_parameters)
            if self.form == "f2sa":
                with Displacement(weights) as place:
                    self._minimise(loss, place, rates, push)
                    at_y = loss.measure(upper_parameters)
            bend = vectors.subtract(at_y.gradient, at_z.gradient)
            factor = inverse_eps if self.form == "f2sa" else _barrier_weight(vector, bend)
            values = loss.difference(at_y, at_z, upper_parameters, factor)
        require_finite(values, lower, "Penalty", "lower lr, or steps if the loss is not convex")
        left = vectors.add(vectors.scale(bend, factor), vector)
        residual = vectors.norm(left) / (vectors.norm(vector) + 1e-15)
        return Product(values, Status("Penalty", iterations=self.steps, residual=residual))

    def _rates(self, lower: LowerProblem, weights: Sequence[Tensor]) -> list[float]:
        if self.lr is not None:
            return [self.lr] * len(weights)
        groups = lower.optimizer_step.optimizer.param_groups
        own = {p: float(group["lr"]) for group in groups for p in group["params"]}
        rates = [own.get(p, float(groups[0]["lr"])) for p in weights]
        if not max(rates) > 0:
            raise HypergradientError(
                f"Penalty() takes the learning rate of problem {lower.name!r}, which is now "
                f"{max(rates)}; give Penalty(lr=...)."
            )
        return rates

    def _minimise(
        self,
        loss: _LowerLoss,
        place: Displacement,
        rates: Sequence[float],
        push: Sequence[Tensor] | None = None,
    ) -> None:
        """Take ``steps`` gradient steps on ``L(w) + <push, w>``."""
        velocity: list[Tensor] | None = None
        for _ in range(self.steps):
            gradient = loss.gradient()
            if push is not None:
                gradient = vectors.add(gradient, push)
            if velocity is None or not self.momentum:
                velocity = gradient
            else:
                velocity = vectors.add(gradient, velocity, alpha=self.momentum)
            place.move(torch._foreach_mul(velocity, list(rates)), -1.0)


@dataclass(frozen=True)
class _Measurement:
    """The lower loss at one point: its gradient by ``w``, and terms for the difference by ``θ``."""

    gradient: list[Tensor]
    rest: list[Tensor]


class _LowerLoss(ABC):
    """``L`` of the last optimizer step at the present parameters."""

    def __init__(
        self, lower: LowerProblem, weights: Sequence[Tensor], rewind: Callable[[], None]
    ) -> None:
        self.lower = lower
        self.weights = list(weights)
        self.rewind = rewind

    @abstractmethod
    def gradient(self) -> list[Tensor]:
        """Return ``∇_w L``."""

    @abstractmethod
    def measure(self, upper_parameters: Sequence[Tensor]) -> _Measurement:
        """Return what :meth:`difference` needs."""

    @abstractmethod
    def difference(
        self, y: _Measurement, z: _Measurement, upper_parameters: Sequence[Tensor], factor: Tensor
    ) -> list[Tensor]:
        """Return ``factor (∇_θ L(y) - ∇_θ L(z))``."""


class _PlainLoss(_LowerLoss):
    def gradient(self) -> list[Tensor]:
        self.rewind()
        return self.lower.mean(window_gradient(self.lower, self.weights))

    def measure(self, upper_parameters: Sequence[Tensor]) -> _Measurement:
        self.rewind()
        found = window_gradient(self.lower, [*self.weights, *upper_parameters])
        gradient = self.lower.mean(found[: len(self.weights)])
        return _Measurement(gradient, found[len(self.weights) :])

    def difference(
        self, y: _Measurement, z: _Measurement, upper_parameters: Sequence[Tensor], factor: Tensor
    ) -> list[Tensor]:
        del upper_parameters
        return vectors.scale(vectors.subtract(y.rest, z.rest), factor)


class _DeclaredLoss(_LowerLoss):
    """``mean_i V_i l_i(w)`` with the sample weights fixed at the initial ``w``."""

    def __init__(
        self,
        lower: LowerProblem,
        sample: SampleLoss,
        weights: Sequence[Tensor],
        rewind: Callable[[], None],
    ) -> None:
        super().__init__(lower, weights, rewind)
        self._sample = sample
        self._steps = require_recorded(lower).steps
        self._samples: list[Samples] = []
        self._held: list[Tensor] = []
        with torch.no_grad():
            for step in self._steps:
                samples = sample.samples(step)
                self._samples.append(samples)
                self._held.append(sample.weights(samples, step))

    def gradient(self) -> list[Tensor]:
        return self._at_present()[0]

    def measure(self, upper_parameters: Sequence[Tensor]) -> _Measurement:
        del upper_parameters
        return _Measurement(*self._at_present())

    def difference(
        self, y: _Measurement, z: _Measurement, upper_parameters: Sequence[Tensor], factor: Tensor
    ) -> list[Tensor]:
        moved = [(a - b) * factor for a, b in zip(y.rest, z.rest, strict=True)]
        pairs = list(zip(self._samples, moved, strict=True))
        return declared_products(self._sample, self._steps, pairs, upper_parameters)

    def _at_present(self) -> tuple[list[Tensor], list[Tensor]]:
        total = [torch.zeros_like(w) for w in self.weights]
        samples: list[Tensor] = []
        self.rewind()
        for step, held in zip(self._steps, self._held, strict=True):
            losses = self._sample.samples(step).losses
            found = self.lower.gradients((held * losses).mean(), self.weights)
            total = vectors.add(total, found)
            samples.append(losses.detach())
        mean = vectors.scale(total, 1.0 / len(self._steps))
        return self.lower.mean(mean), samples


def _lower_loss(
    lower: LowerProblem, weights: Sequence[Tensor], rewind: Callable[[], None]
) -> _LowerLoss:
    sample = declared_loss(lower)
    if sample is not None:
        return _DeclaredLoss(lower, sample, weights, rewind)
    return _PlainLoss(lower, weights, rewind)


def _barrier_weight(vector: Sequence[Tensor], bend: Sequence[Tensor]) -> Tensor:
    """Return ``max(-<v, ∇q> / ||∇q||², 0)``; 0 if ``∇q`` is 0."""
    square = vectors.dot(bend, bend)
    weight = -vectors.dot(vector, bend) / torch.where(square > 0, square, 1.0)
    return weight.clamp(min=0.0)
