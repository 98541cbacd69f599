"""Native hypergradient of learned sample weights.

For a lower loss ``L(w, θ) = mean_i V_i(sg(l(w)); θ) l_i(w)``, where ``sg`` stops the gradient, the
mixed derivative needs no second-order graph::

    (∂²L/∂θ∂w) v = ∇_θ mean_i V_i(sg(l); θ) sg(d_i),      d_i = <∇_w l_i, v>

The ``d_i`` of a whole batch are directional derivatives of its losses along ``v``: one forward-mode
pass (exact), or two forward passes without any graph (central difference). With the inverse
Hessian taken as the identity the hypergradient is minus that. ``V`` may look at the whole batch, so
weights normalised over it are covered.

Unlike a finite difference of the weighted loss this respects the stop-gradient, and so it is the
one-step gradient of Meta-Weight-Net as published, without its factor of the inner learning rate.

Sources: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379), eq. 7-8;
Ren et al., "Learning to Reweight Examples", ICML 2018 (arXiv:1803.09050).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import vectors
from ..errors import ConfigurationError
from .base import Hypergradient, Product, Status
from .products import Evaluation, require_recorded

if TYPE_CHECKING:
    from ..problem import Problem
    from ..reweighted import ReweightedProblem
    from ..trajectory import RecordedStep

DERIVATIVES = ("central_difference", "forward_mode")


@dataclass(frozen=True)
class Reweighting(Hypergradient):
    """``-∇_θ mean_i V_i(sg(l); θ) sg(<∇_w l_i, v>)`` for a :class:`ReweightedProblem`.

    Args:
        derivative: ``"central_difference"``: two forward passes of the sample losses without any
            graph; error of order ``alpha²`` (2e-3 relative on a ResNet-32 in single precision).
            ``"forward_mode"``: one pass of dual numbers, exact to rounding, about 1.5 times the
            time of the two. Needs forward-mode formulas for every operation of the network, which
            fused attention kernels lack.
        alpha: Length of the displacement of the central difference, ``eps = alpha / ||v||``.
        full_precision: Compute the passes without autocast.
    """

    derivative: str = "central_difference"
    alpha: float = 0.01
    full_precision: bool = True

    def __post_init__(self) -> None:
        if self.derivative not in DERIVATIVES:
            raise ConfigurationError(
                f"Reweighting(derivative={self.derivative!r}) is not one of "
                f"{', '.join(DERIVATIVES)}; choose one of these."
            )
        if not 0 < self.alpha < float("inf"):
            raise ConfigurationError(
                f"Reweighting(alpha={self.alpha}) must be positive and finite; "
                "0.01 is the usual choice."
            )

    def check(self, problem: Problem) -> None:
        require_reweighted(problem)

    def vjp(self, problem: Problem, vector: Sequence[Tensor], wanted: Sequence[Tensor]) -> Product:
        problem = require_reweighted(problem)
        steps = require_recorded(problem).steps
        with Evaluation(
            problem,
            graph=False,
            in_full_precision=self.full_precision,
            second_order=self.derivative == "forward_mode",
        ) as evaluation:
            if self.derivative == "forward_mode":
                pairs = forward_mode_derivatives(problem, steps, evaluation.weights, vector)
            else:
                inverse_eps = evaluation.inverse_step(vector, self.alpha)
                pairs = central_derivatives(problem, steps, evaluation.weights, vector, inverse_eps)
            mixed = problem.weight_products(steps, pairs, wanted)
        return Product(vectors.scale(mixed, -1.0), Status("Reweighting"))


def require_reweighted(problem: Problem) -> ReweightedProblem:
    """Return the problem if it declares its sample losses and weights.

    Raises:
        ConfigurationError: When it does not.
    """
    from ..reweighted import ReweightedProblem  # noqa: PLC0415 (a problem knows its algorithms)

    if not isinstance(problem, ReweightedProblem):
        raise ConfigurationError(
            f"Problem {problem.name!r} asks for the 'reweighting' hypergradient but is a "
            f"{type(problem).__name__}; derive it from ReweightedProblem and define "
            "sample_losses and sample_weights, or choose type='darts'."
        )
    return problem


def central_derivatives(
    problem: ReweightedProblem,
    steps: Sequence[RecordedStep],
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """Return ``(l_i, <∇_w l_i, v>)`` per micro-batch from losses at ``w ± eps v``, without a graph.

    The losses returned are the mean of the two, equal to ``l_i(w)`` up to ``O(eps²)``.
    """
    shift = vectors.divide(vector, inverse_eps)
    with torch.no_grad():
        with vectors.Displacement(parameters) as weights:
            weights.move(shift)
            plus = [replayed_losses(problem, step) for step in steps]
            weights.move(shift, -2.0)
            minus = [replayed_losses(problem, step) for step in steps]
        half = inverse_eps / 2
        return [((p + m) / 2, (p - m) * half) for p, m in zip(plus, minus, strict=True)]


def replayed_losses(problem: ReweightedProblem, step: RecordedStep) -> Tensor:
    """Return the sample losses of one recorded micro-batch, with the random numbers it drew."""
    step.random.restore()
    return problem.checked_losses(step.batch)


def forward_mode_derivatives(
    problem: ReweightedProblem,
    steps: Sequence[RecordedStep],
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Return ``(l_i, <∇_w l_i, v>)`` per micro-batch from one pass of dual numbers."""
    network = _SampleLosses(problem)
    names = {id(p): name for name, p in network.named_parameters()}
    pairs = []
    with torch.no_grad(), quiet_first_use(), forward_ad.dual_level():
        tensors: dict[str, Tensor] = {
            names[id(p)]: forward_ad.make_dual(p, v)  # type: ignore[no-untyped-call]
            for p, v in zip(parameters, vector, strict=True)
        }
        for step in steps:
            step.random.restore()
            buffers = {name: b.clone() for name, b in network.named_buffers()}
            output = torch.func.functional_call(network, {**tensors, **buffers}, (step.batch,))
            losses, tangent = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
            pairs.append((losses, torch.zeros_like(losses) if tangent is None else tangent))
    return pairs


@contextmanager
def quiet_first_use() -> Iterator[None]:
    """Silence a deprecation that torch's own forward-mode formulas raise when first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
        yield


class _SampleLosses(nn.Module):
    """The problem's network with its sample losses as output, for a functional call."""

    def __init__(self, problem: ReweightedProblem) -> None:
        super().__init__()
        self.network = problem.module
        self._losses = problem.checked_losses

    def forward(self, batch: Any) -> Tensor:
        return self._losses(batch)
