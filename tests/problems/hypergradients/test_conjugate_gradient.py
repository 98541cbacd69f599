"""Conjugate gradients: how far they get, when they stop, and what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from metaweight.problems.hypergradients.conjugate_gradient import solved
from support.quadratic import error, evaluated, spread, with_eigenvalues

from metaweight import ConjugateGradient, HypergradientError

N, CONDITION = 50, 1e4
ILL = with_eigenvalues(spread(N, 1 / CONDITION))


def test_cg_solves_an_ill_conditioned_system():
    """150 iterations instead of 50: rounding costs the directions their orthogonality.

    What can be reached at this condition number is 1e4 * 2e-16 times a small constant.
    """
    gradient, v, status = evaluated(ILL, ConjugateGradient(iterations=150))
    assert error(gradient, ILL.product(v)) < 1e-8
    assert status.iterations == 150
    assert float(status.residual) < 1e-7
    gradient, v, _ = evaluated(ILL, ConjugateGradient(iterations=400))
    assert error(gradient, ILL.product(v)) < 1e-12


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_cg_stops_at_its_tolerance(tolerance, damping):
    """The residual carried along and the true one differ by rounding, 1e-13 here."""
    method = ConjugateGradient(iterations=1000, damping=damping, tolerance=tolerance)
    gradient, v, status = evaluated(ILL, method)
    assert float(status.residual) < 1.01 * tolerance
    assert 5 < status.iterations < 200
    _, _, before = evaluated(ILL, replace(method, iterations=status.iterations - 1))
    assert before.iterations == status.iterations - 1
    assert float(before.residual) > tolerance
    # |x - x*| <= |A⁻¹| |r|, relative to the result.
    bound = tolerance * v.norm() * torch.linalg.matrix_norm(ILL.mixed, 2) / (1e-4 + damping)
    assert (gradient - ILL.product(v, damping)).norm() < 1.01 * bound


def test_cg_alpha_scales_the_system_and_not_the_answer():
    found = [evaluated(ILL, "cg", cg_iterations=30, cg_alpha=a)[0] for a in (0.1, 1.0, 7.0)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[1])


def test_cg_refuses_negative_curvature_and_says_how_much_to_damp():
    """-0.5 is among the eigenvalues, so damping has to exceed it; what is advised is a bound."""
    bent = with_eigenvalues(torch.cat([-torch.tensor([0.5]).double(), spread(N - 1, 0.1)]))
    message = r"ConjugateGradient\(.*\) met a direction of curvature -0\.\d+ in .*'lower'.*raise"
    with pytest.raises(HypergradientError, match=message):
        evaluated(bent, ConjugateGradient(iterations=60))
    method = ConjugateGradient(iterations=60, damping=0.6)
    gradient, v, _ = evaluated(bent, method)
    assert error(gradient, bent.product(v, 0.6)) < 1e-9


def test_cg_refuses_a_flat_system_with_no_solution():
    """Rank 20 and a vector partly outside: in floating point the curvature is not exactly zero."""
    eigenvalues = torch.cat([torch.zeros(N - 20).double(), spread(20, 0.1)])
    with pytest.raises(HypergradientError, match="raise damping above"):
        evaluated(with_eigenvalues(eigenvalues), ConjugateGradient(iterations=100))
    with pytest.raises(HypergradientError, match="curvature 0 "):
        evaluated(with_eigenvalues(0 * eigenvalues), ConjugateGradient(iterations=3))


def rank_deficient(zeros):
    return with_eigenvalues(torch.cat([torch.zeros(zeros).double(), spread(N - zeros, 0.01)]))


@pytest.mark.parametrize(
    ("zeros", "iterations", "refused"), [(20, 10, False), (30, 10, True), (30, 20, True)]
)
def test_a_batch_of_low_rank_is_told_a_damping_that_helps(zeros, iterations, refused):
    """Before the curvature is seen to be flat: the solution grows without coming nearer."""
    quadratic, method = rank_deficient(zeros), ConjugateGradient(iterations=iterations)
    message = r"'lower' leaves a residual of .*Raise damping to [\d.]+\d"
    caught = (
        pytest.raises(HypergradientError, match=message)
        if refused
        else pytest.warns(UserWarning, match=message)
    )
    with caught as found:
        evaluated(quadratic, method)
    said = str(found.value) if refused else str(found[0].message)
    advised = float(re.search(r"Raise damping to ([\d.]+\d)", said).group(1))
    gradient, v, status = evaluated(quadratic, replace(method, damping=advised))
    assert float(status.residual) < 0.5
    assert error(gradient, quadratic.product(v, advised)) < 0.5


def test_a_flat_direction_is_told_a_damping_that_helps():
    quadratic, method = rank_deficient(42), ConjugateGradient(iterations=12)
    with pytest.raises(HypergradientError, match=r"raise damping above ([\d.]+\d)") as found:
        evaluated(quadratic, method)
    advised = float(re.search(r"above ([\d.]+\d)", str(found.value)).group(1))
    _, _, status = evaluated(quadratic, replace(method, damping=advised))
    assert 0 < advised < 0.1
    assert float(status.residual) < 0.5


@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 8))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cg_tells_a_flat_direction_from_rounding(dtype, seed):
    """Singular systems, far past the end: a vector outside of the range is noticed, though the
    curvature met there is never exactly 0; with one inside, what is met late is rounding, and the
    solution stands at half the digits or better."""
    for zeros, consistent in ((1, False), (30, False), (1, True), (30, True)):
        eigenvalues = torch.cat([torch.zeros(zeros).double(), spread(N - zeros, 0.1)])
        a = with_eigenvalues(eigenvalues, seed=seed).hessian.to(dtype)
        generator = torch.Generator().manual_seed(seed)
        right = torch.randn(N, generator=generator, dtype=torch.float64).to(dtype)
        right = a @ right if consistent else right
        solve = solved(lambda p, a=a: [a @ p[0]], [right], iterations=200)
        assert bool(solve.flat) != consistent
        if consistent:
            residual = error(a @ solve.solution[0], right.double())
            assert residual < torch.finfo(dtype).eps ** 0.5
