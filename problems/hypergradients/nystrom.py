"""Implicit hypergradient with a low-rank Nyström approximation of the Hessian.

With ``Y = HΩ`` for an orthonormal ``Ω`` of ``rank`` random columns, ::

    H  ≈  Ĥ = Y (ΩᵀY)⁺ Yᵀ,    (dw*/dθ)ᵀ v  ≈  -(∂²L/∂θ∂w) (Ĥ + damping I)⁻¹ v

``Ĥ`` equals ``H`` when ``rank`` is the number of parameters, and when ``H`` is positive
semi-definite of rank at most ``rank``. Outside the span of ``Y`` the inverse is ``1 / damping``, so
``damping`` should not be below the omitted eigenvalues.

Inverting ``ΩᵀY`` or the Woodbury matrix would lose small eigenvalues to rounding. Instead,
``H + sI`` is approximated, its eigenvalues come from singular values, and ``s`` is subtracted from
them. ``s`` is of the size of rounding for a positive semi-definite ``H``. When ``ΩᵀY`` has a
negative eigenvalue ``-μ``, the formula above can have eigenvalues far below those of ``H``; with
``s = 2μ`` none is below ``-μ``.

Sources: Hataya, Yamada, "Nyström Method for Accurate and Scalable Implicit Differentiation",
AISTATS 2023 (arXiv:2302.09726), which takes ``Ω`` from columns of the identity; a dense random
``Ω`` and the shift by rounding: Frangella, Tropp, Udell, "Randomized Nyström Preconditioning", SIAM
J. Matrix Anal. Appl. 2023 (arXiv:2110.02820).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..base.settings import require_count, require_number
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import Hypergradient, LowerProblem, require_finite
from .conjugate_gradient import solve_to_convergence
from .product import ConvergedSolve, Product, Status


@dataclass(frozen=True)
class Nystrom(Hypergradient):
    """``-(∂²L/∂θ∂w) (Ĥ + damping I)⁻¹ v`` with the Nyström approximation ``Ĥ`` of ``H``.

    Cost: ``rank`` Hessian-vector products, and three matrices with a row per parameter and
    ``rank`` columns. The random columns are drawn on the CPU, so that they are equal on every
    device, by a generator seeded with ``seed`` and the problem's ``count``. The host waits for the
    device in the decompositions.

    The status holds the residual in the true system, which shows how much of ``H`` the
    approximation misses.

    Args:
        rank: Columns of the sketch, at most the number of parameters.
        damping: Added to every eigenvalue of ``H``.
        seed: Seed of the random columns.

    Raises:
        HypergradientError: From :meth:`vjp`, when ``Ĥ + damping I`` is not positive definite, or
            the Hessian products are not finite.
    """

    rank: int = 10
    damping: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("Nystrom", "rank", self.rank, least=1)
        advice = "outside the sketch the inverse is 1 / damping"
        require_number("Nystrom", "damping", self.damping, positive=True, advice=advice)
        require_count("Nystrom", "seed", self.seed, least=0)

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(self.damping, "raise rank")

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return products_of_one_graph(self.rank)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        remedy = "look at the lower loss and its second derivatives"
        with curvature(lower) as second:
            system = LinearSystem(second, vector, self.damping)
            right = vectors.flat(system.right)
            basis = sketch(right, self.rank, self.seed, lower.count)
            image = torch.stack(
                [
                    vectors.flat(system.hessian(vectors.split(u, system.right)))
                    for u in basis.unbind(1)
                ],
                1,
            )
            require_finite([image], lower, "Nystrom", remedy)
            low = low_rank(basis, image, self.damping)
            if bool(low.lowest + self.damping <= low.eigenvalues.abs().amax() * system.eps):
                raise self._not_positive(lower, float(low.lowest))
            solution = inverse_product(low, self.damping, right)
            answer = system.answer(vectors.split(solution, system.right), upper_parameters)
        require_finite([*answer.values, answer.residual], lower, "Nystrom", remedy)
        values = {"rank": float(basis.shape[1])}
        return Product(answer.values, Status("Nystrom", residual=answer.residual, values=values))

    def _not_positive(self, lower: LowerProblem, lowest: float) -> HypergradientError:
        return HypergradientError(
            f"{self} met curvature {lowest:.3g} in the Hessian of problem {lower.name!r}, which "
            f"the damping does not lift above 0; raise damping above {abs(lowest):.3g}. Parameters "
            "are as they were."
        )


class LowRank(NamedTuple):
    """``vectors @ diag(eigenvalues) @ vectorsᵀ``, an approximation with orthonormal columns.

    Attributes:
        eigenvalues: One per column.
        vectors: One row per parameter.
        lowest: An upper bound on the least eigenvalue of ``H``; at most the least of
            ``eigenvalues``.
    """

    eigenvalues: Tensor
    vectors: Tensor
    lowest: Tensor


def sketch(like: Tensor, rank: int, seed: int, count: int) -> Tensor:
    """Return orthonormal random columns, ``(dimension, min(rank, dimension))``."""
    dimension = like.numel()
    # torch's CPU generator uses only 32 bits of its seed.
    mixed = random.Random(f"{seed} {count}").getrandbits(32)
    generator = torch.Generator().manual_seed(mixed)
    shape = (dimension, min(rank, dimension))
    # Uniform entries serve as well as Gaussian ones, in a third of the time.
    entries = (
        torch.rand(shape, generator=generator, dtype=like.dtype, device=generator.device)
        .mul_(2.0)
        .sub_(1.0)
    )
    orthonormal: Tensor = torch.linalg.qr(entries.to(like.device)).Q
    return orthonormal


def low_rank(basis: Tensor, image: Tensor, damping: float) -> LowRank:
    """Return ``Ĥ`` for ``basis`` ``Ω`` and ``image`` ``Y``, by its eigenvalues."""
    core = basis.T @ image
    ritz, rotation = torch.linalg.eigh((core + core.T) / 2)
    rounding = torch.finfo(image.dtype).eps * (torch.linalg.matrix_norm(image) + damping)
    shift = rounding + 2.0 * (-ritz.min()).clamp(min=0.0)
    # With B = Ωᵀ(H + sI)Ω: (H + sI)Ω B⁻¹ Ωᵀ(H + sI) is the square of this factor.
    factor = (image + shift * basis) @ (rotation / (ritz + shift).sqrt())
    orthonormal, triangle = torch.linalg.qr(factor)
    turn, singular, _ = torch.linalg.svd(triangle)
    eigenvalues = singular.square() - shift
    return LowRank(eigenvalues, orthonormal @ turn, torch.minimum(ritz.min(), eigenvalues.min()))


def inverse_product(low: LowRank, damping: float, right: Tensor) -> Tensor:
    """Return ``(Ĥ + damping I)⁻¹ v``, with the span of ``Ĥ`` and its complement apart."""
    inside = low.vectors.T @ right
    solution: Tensor = low.vectors @ (inside / (low.eigenvalues + damping))
    if low.vectors.shape[0] > low.vectors.shape[1]:
        solution = solution + (right - low.vectors @ inside) / damping
    return solution
