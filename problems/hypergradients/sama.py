"""SAMA: the central difference of DARTS, preconditioned by the optimizer's own Jacobian.

An adaptive optimizer moves ``w`` by ``u(g)`` rather than by ``g``, so the response of ``w`` to a
change of ``θ`` carries the diagonal factor ``∂u/∂g``: the product is ``-∂²L/∂θ∂w · (∂u/∂g ⊙ v)``.

Source: Choe et al., "Making Scalable Meta Learning Practical", NeurIPS 2023 (arXiv:2310.05674).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigurationError
from ..trajectory import Recording
from ..unrolling import clipped
from .base import Hypergradient, Product, Status
from .finite_difference import central_difference
from .products import require_recorded

if TYPE_CHECKING:
    from ..problem import Problem


@dataclass(frozen=True)
class SAMA(Hypergradient):
    """``-∂²L/∂θ∂w · (∂u/∂g ⊙ v)`` by a central difference of length ``alpha``.

    The factor is that of Adam or AdamW at the step just taken, and 1 for SGD (whose momentum does
    not enter).

    Args:
        alpha: Length of the displacement.
        multitask: Leave the parameters at ``w - eps v``.
    """

    alpha: float = 1.0
    multitask: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ConfigurationError(f"SAMA(alpha={self.alpha}) must be positive and finite.")

    def check(self, problem: Problem) -> None:
        optimizer = problem.optimizer
        if not isinstance(optimizer, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)):
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for type='sama' with the optimizer "
                f"{type(optimizer).__name__}; its Jacobian is known for SGD, Adam and AdamW. "
                "Use one of these, or type='darts'."
            )

    def recording(self, problem: Problem) -> Recording:
        del problem
        return Recording(optimizer=True)

    def vjp(self, problem: Problem, vector: Sequence[Tensor], wanted: Sequence[Tensor]) -> Product:
        moment = require_recorded(problem).moment
        optimizer = problem.optimizer
        if moment is not None and isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            groups = {p: group for group in optimizer.param_groups for p in group["params"]}
            gradients = clipped(problem, moment, moment.gradients)
            vector = [
                v * adam_jacobian(groups[p], optimizer.state[p], gradients[p])
                if p in gradients
                else torch.zeros_like(v)
                for p, v in zip(problem.meta_trainable_parameters(), vector, strict=True)
            ]
        values = central_difference(
            problem, vector, wanted, alpha=self.alpha, keep_displaced=self.multitask
        )
        return Product(values, Status("SAMA"))


def adam_jacobian(
    group: Mapping[str, Any], state: Mapping[str, Tensor], gradient: Tensor
) -> Tensor:
    """Return the diagonal ``∂u/∂g`` of Adam's step ``u`` at its last gradient ``g``::

        lr ((1 - β1) β2 v' - β1 (1 - β2) g m') / (sqrt(v) + eps)³

    with ``m'``, ``v'`` the moments before the step and ``v`` after it; bias correction is left out,
    as in the source.
    """
    beta1, beta2 = group["betas"]
    first, second = state["exp_avg"], state["exp_avg_sq"]
    old_first = (first - (1 - beta1) * gradient) / beta1 if beta1 else torch.zeros_like(first)
    old_second = (second - (1 - beta2) * gradient * gradient) / beta2
    numerator = (1 - beta1) * beta2 * old_second - beta1 * (1 - beta2) * gradient * old_first
    jacobian: Tensor = numerator / (second.sqrt() + group["eps"]) ** 3 * group["lr"]
    return jacobian
