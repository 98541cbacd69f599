"""The Nyström method: exact where it claims to be, and its own formula elsewhere."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.hypergradients.nystrom import sketch
from support.quadratic import Quadratic, bilevel, error, flat, spread, with_eigenvalues

from metaweight import Config, HypergradientError, Nystrom

N = 50


def eigenvalues(*parts):
    return torch.cat([torch.as_tensor(p, dtype=torch.float64).reshape(-1) for p in parts])


SPREAD = spread(N, 1e-4)


def product(quadratic, method, count=1):
    """``(dw*/dθ)ᵀ v`` and ``v``, after ``count`` steps."""
    engine = bilevel(quadratic, Config(type=method))
    for _ in range(count):
        engine.train_step()
    v = torch.linspace(-1, 2, len(quadratic.linear), dtype=torch.float64)
    vector = engine.lower.module.split(v.to(quadratic.linear.dtype))
    found = method.vjp(lower_view(engine.lower), vector, list(engine.upper.module.parameters()))
    return flat(found.values).double(), v, found.status


@pytest.mark.parametrize("rank", [N, 4 * N])
@pytest.mark.parametrize("damping", [1e-2, 1e-5, 1e-10])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-6])
def test_a_sketch_of_everything_is_the_damped_inverse(rank, damping, scale):
    """Of a matrix with condition number 1e4, so 1e4 * 2e-16 * sqrt(50) and some for products."""
    quadratic = with_eigenvalues(scale * SPREAD)
    found, v, status = product(quadratic, Nystrom(rank=rank, damping=damping * scale))
    assert error(found, quadratic.product(v, damping * scale)) < 1e-10
    assert float(status.residual) < 1e-10
    assert status.values == {"rank": N}


@pytest.mark.parametrize("seed", range(5))
def test_a_hessian_of_low_rank_is_met_exactly(seed):
    """Rank 8 of 50, sketched by 10: what is left is rounding over damping, 1e-13."""
    quadratic = with_eigenvalues(eigenvalues(torch.zeros(N - 8), torch.logspace(-2, 0, 8)))
    found, v, status = product(quadratic, Nystrom(rank=10, damping=1e-3, seed=seed))
    assert error(found, quadratic.product(v, 1e-3)) < 1e-9
    assert float(status.residual) < 1e-9
    _, _, worse = product(quadratic, Nystrom(rank=6, damping=1e-3, seed=seed))
    assert float(worse.residual) > 1e-2


def test_more_columns_come_closer():
    decaying = with_eigenvalues(torch.logspace(0, -12, N, dtype=torch.float64))
    errors = []
    for rank in (2, 8, 16, 32):
        found, v, _ = product(decaying, Nystrom(rank=rank, damping=1e-2))
        errors.append(error(found, decaying.product(v, 1e-2)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]


def test_single_precision():
    """Rounding 6e-8 times the condition number of the damped matrix, 100, times sqrt(50)."""
    quadratic = with_eigenvalues(SPREAD)
    found, v, _ = product(quadratic.to(torch.float32), Nystrom(rank=N, damping=1e-2))
    assert error(found, quadratic.product(v, 1e-2)) < 1e-4


def test_same_seed_same_result_and_another_at_another_count():
    quadratic = with_eigenvalues(SPREAD)
    torch.default_generator.manual_seed(1)
    first, _, _ = product(quadratic, Nystrom(rank=5))
    torch.default_generator.manual_seed(2)
    state = torch.get_rng_state()
    again, _, _ = product(quadratic, Nystrom(rank=5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    later, _, _ = product(quadratic, Nystrom(rank=5), count=2)
    other, _, _ = product(quadratic, Nystrom(rank=5, seed=1))
    big, _, _ = product(quadratic, Nystrom(rank=5, seed=2**32))
    for different in (later, other, big):
        assert error(different, first) > 1e-3


@pytest.mark.parametrize("rank", [1, 3, 9, 20])
def test_columns_are_orthonormal(rank):
    basis = sketch(torch.zeros(9, dtype=torch.float64), rank, seed=0, count=1)
    columns = min(rank, 9)
    assert basis.shape == (9, columns)
    torch.testing.assert_close(basis.T @ basis, torch.eye(columns, dtype=torch.float64))


def test_negative_curvature_beyond_the_damping_is_refused():
    bent = with_eigenvalues(eigenvalues([-0.5], torch.ones(N - 1)))
    message = (
        r"Nystrom\(.*\) met curvature -0\.5 in the Hessian of problem 'lower'.*above 0\.5\. Pa"
    )
    with pytest.raises(HypergradientError, match=message):
        product(bent, Nystrom(rank=N, damping=0.1))


@pytest.mark.parametrize("rank", [5, 25, N])
def test_negative_curvature_within_the_damping_stays_within_it(rank):
    """Eigenvalues of both signs, where ``Y (ΩᵀY)⁺ Yᵀ`` alone has some far outside of them."""
    mixed = with_eigenvalues(torch.linspace(-0.5, 0.5, N, dtype=torch.float64))
    found, v, _ = product(mixed, Nystrom(rank=rank, damping=0.6))
    if rank == N:
        assert error(found, mixed.product(v, 0.6)) < 1e-9
    # The least eigenvalue of the approximated system is 0.1, that of the true one.
    bound = torch.linalg.matrix_norm(mixed.mixed, 2) * v.norm() / 0.1
    assert found.norm() <= bound


def test_no_curvature_at_all():
    zero = Quadratic(0 * with_eigenvalues(SPREAD).hessian, torch.eye(N).double(), SPREAD)
    found, v, _ = product(zero, Nystrom(rank=3, damping=0.25))
    assert error(found, -4 * v) < 1e-12
