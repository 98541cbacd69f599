"""Zeroth-order hypergradient: antithetic evolution strategies over upper parameters.

A replay of the lower problem's loop with displaced upper parameters evaluates ``w_T(θ)``. With
``Φ(θ) = F(θ, w_T(θ))`` ::

    dΦ/dθ  ≈  1/n Σ_{i=1}^{n} (Φ(θ + s e_i) - Φ(θ - s e_i)) / (2 s) · e_i,      e_i ~ N(0, I)

is an unbiased estimate of the gradient of ``Φ`` smoothed by a Gaussian of width ``s``. ``Φ`` need
not have a derivative: the upper loss may be an error rate, the lower loss a step function of ``θ``.
The variance grows with the number of upper parameters.

Sources: Nesterov, Spokoiny, "Random Gradient-Free Minimization of Convex Functions", Foundations of
Computational Mathematics 2017; Salimans et al., "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning", 2017 (arXiv:1703.03864).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import vectors
from ..base.displacement import Displacement
from ..base.errors import ConfigurationError
from ..base.settings import is_count, is_positive, require_count
from .base import LowerProblem, require_finite
from .product import Product, Status
from .value import Rollouts, ValueHypergradient, seed_of, standard_error


@dataclass(frozen=True)
class ZeroOrder(ValueHypergradient):
    """``1/n Σ (Φ(θ + s e_i) - Φ(θ - s e_i)) / (2s) e_i`` for ``Φ(θ) = F(θ, w_T(θ))``.

    Each sample replays the ``unroll_steps`` optimizer steps of the loop twice, with their batches
    and random numbers, and evaluates the upper loss on its batch. The result has the scale of the
    learning rate, as an unrolled hypergradient has. It also follows what the lower loss detaches,
    which changes with ``θ`` from the second step on.

    If the upper loss has a graph, autograd gives its direct gradient, and ``θ`` is displaced in the
    lower problem's steps only; otherwise in the upper loss too. New directions are drawn at every
    step of the lower problem; the global random streams are preserved.

    The status holds ``"standard error"``, the norm of the estimate's standard error, to compare
    with the norm of the hypergradient. It falls with the square root of ``samples``.

    Args:
        samples: ``n``, the number of directions.
        radius: ``s``. Small for a smooth ``Φ``, since the bias grows with its square; for an error
            rate large enough to change some predictions.
        seed: Seed of the directions.
    """

    samples: int = 8
    radius: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("ZeroOrder", "seed", self.seed, least=0)
        if not is_count(self.samples, least=1):
            raise ConfigurationError(
                f"ZeroOrder(samples={self.samples!r}) must be an integer of at least 1; 8 is "
                "the default."
            )
        if not is_positive(self.radius):
            raise ConfigurationError(
                f"ZeroOrder(radius={self.radius!r}) must be positive and finite; give the length "
                "by which every upper parameter may be displaced."
            )

    def passes(self, lower: LowerProblem) -> str:
        number = 2 * self.samples * lower.optimizer_step.per_loop
        return f"{number} forward and {number} backward passes"

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        del lower
        return True

    def sees_settings(self, lower: LowerProblem) -> bool:
        del lower
        return True

    def sees_start(self, lower: LowerProblem) -> bool:
        del lower
        return True

    def estimate(
        self, lower: LowerProblem, value: Callable[[], Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        seed = seed_of(self.seed, lower.name, lower.count)
        generator = torch.Generator().manual_seed(seed)
        total = [torch.zeros_like(t) for t in upper_parameters]
        squares = torch.zeros((), device=upper_parameters[0].device)
        with Rollouts(lower, upper_parameters) as rollouts:

            def at(shift: list[Tensor], times: float) -> Tensor:
                with Displacement(upper_parameters) as upper:
                    upper.move(shift, times)
                    rollouts.run(rollouts.updates)
                    return value()

            for _ in range(self.samples):
                direction = [_gaussian(t, generator) for t in upper_parameters]
                slope = (at(direction, self.radius) - at(direction, -self.radius)) / 2
                sample = vectors.scale(direction, slope / self.radius)
                total = vectors.add(total, sample)
                squares = squares + vectors.norm(sample) ** 2
        mean = vectors.scale(total, 1.0 / self.samples)
        require_finite(
            mean, lower, "ZeroOrder", "use a smaller radius, or make the upper loss finite"
        )
        values = {}
        if self.samples > 1:
            values["standard error"] = standard_error(squares, mean, self.samples)
        return Product(mean, Status("ZeroOrder", len(rollouts.updates), values=values))


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw on the host, so that directions are the same on every device."""
    real = vectors.real(like)
    drawn = torch.randn(
        real.shape, generator=generator, dtype=real.dtype, device=generator.device
    ).to(like.device)
    return torch.view_as_complex(drawn) if like.is_complex() else drawn
