"""Whatever the settings, an implicit method gives what its formula says, or raises and says why.

Random quadratic programs: positive definite, ill-conditioned, singular, indefinite, zero, of any
scale, in both precisions. ``B = -I`` shows the solution itself. The formulas are computed densely
in double precision.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.hypergradients.nystrom import sketch
from support.quadratic import Quadratic, bilevel, flat, with_eigenvalues

from metaweight import Config, ConjugateGradient, HypergradientError, Neumann, Nystrom

SEEDS = [*range(20), *(pytest.param(s, marks=pytest.mark.slow) for s in range(20, 120))]
KINDS = ("positive", "ill-conditioned", "singular", "indefinite", "nearly positive", "zero")


@dataclass
class Case:
    quadratic: Quadratic
    vector: torch.Tensor
    scale: float
    kind: str
    dtype: torch.dtype
    accumulation: int

    @property
    def eps(self):
        return torch.finfo(self.dtype).eps


def case(draw: random.Random) -> Case:
    n, kind = draw.randint(1, 12), draw.choice(KINDS)
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    decades = {"ill-conditioned": 4, "positive": 1.5}.get(kind, 1)
    eigenvalues = 10 ** (-decades * uniform)
    signs = torch.rand(n, generator=generator, dtype=torch.float64)
    if kind == "singular":
        eigenvalues[signs < 0.5] = 0
    if kind in ("indefinite", "nearly positive"):
        eigenvalues[signs < 0.3] *= -1.0 if kind == "indefinite" else -0.05
    scale = 10 ** draw.uniform(-4, 4) if kind != "zero" else 0.0
    dtype = draw.choice([torch.float64, torch.float64, torch.float32])
    found = with_eigenvalues(scale * eigenvalues, seed=draw.getrandbits(31))
    whole = Quadratic(found.hessian, -torch.eye(n).double(), found.linear)
    vector = torch.randn(n, generator=generator, dtype=torch.float64) * 10 ** draw.uniform(-12, 5)
    vector, whole = vector.to(dtype).double(), whole.to(dtype).to(torch.float64)
    accumulation = draw.choice([1, 1, 3]) if dtype == torch.float64 and scale > 1e-3 else 1
    return Case(whole, vector, scale or 1.0, kind, dtype, accumulation)


def run(case: Case, method):
    """The solution and the status."""
    config = Config(type=method, gradient_accumulation=case.accumulation)
    engine = bilevel(case.quadratic.to(case.dtype), config)
    engine.run()
    vector = engine.lower.module.split(case.vector.to(case.dtype))
    found = method.vjp(lower_view(engine.lower), vector, list(engine.upper.module.parameters()))
    assert all(t.dtype == case.dtype for t in found.values)
    return flat(found.values).double(), found.status


def close(case: Case, actual, expected, condition: float):
    """Within rounding: 100 machine epsilons, magnified by the condition number.

    Micro-batches of other Hessians are summed, so their size counts too.
    """
    rounding = 100 * case.eps * condition * (1 + 30 * (case.accumulation > 1) / case.scale)
    assert (actual - expected).norm() <= rounding * expected.norm() + 1e-30


def holds(case: Case, damping: float, solution, residual):
    """The status tells the true residual."""
    matrix = case.quadratic.damped(damping)
    expected = float((matrix @ solution - case.vector).norm() / case.vector.norm())
    size = torch.linalg.matrix_norm(matrix, 2) * solution.norm() / case.vector.norm()
    noise = 100 * case.eps * float(size + 1) * (1 + 30 * (case.accumulation > 1) / case.scale)
    assert float(residual) == pytest.approx(expected, rel=1e-4, abs=noise)


def condition(matrix) -> float:
    return float(torch.linalg.cond(matrix))


@pytest.mark.parametrize("seed", SEEDS)
def test_neumann(seed):
    draw = random.Random(seed)
    problem = case(draw)
    method = Neumann(
        iterations=draw.randint(0, 40),
        alpha=draw.choice([0.1, 0.5, 1.5, 2.5]) / problem.scale,
        damping=draw.choice([0.0, 0.3, 2.0]) * problem.scale,
    )
    step = torch.eye(len(problem.vector)) - method.alpha * problem.quadratic.damped(method.damping)
    terms = [problem.vector]
    for _ in range(method.iterations + 1):
        terms.append(step @ terms[-1])
    growth = float(terms[-1].norm() / terms[0].norm())
    try:
        solution, status = run(problem, method)
    except HypergradientError as refusal:
        assert growth > 9.99
        assert "alpha below 2" in str(refusal) or "raise damping above" in str(refusal)
        return
    assert growth < 10.01
    longest = max(float(t.norm()) for t in terms) / max(float(sum(terms[:-1]).norm()), 1e-300)
    close(problem, solution, method.alpha * sum(terms[:-1]), longest * len(terms))
    holds(problem, method.damping, solution, status.residual)


def krylov(matrix, vector, iterations):
    """Per iteration the least Ritz value so far and the minimiser over the space."""
    found, basis = [], []
    new = vector
    for _ in range(iterations):
        for _ in range(2):
            for q in basis:
                new = new - (q @ new) * q
        if new.norm() <= 1e-9 * torch.linalg.matrix_norm(matrix, 2) and basis:
            break
        basis.append(new / new.norm())
        q = torch.stack(basis, 1)
        small = q.T @ matrix @ q
        least = float(torch.linalg.eigvalsh((small + small.T) / 2).min())
        found.append((least, q @ torch.linalg.pinv(small, rtol=1e-13) @ (q.T @ vector)))
        new = matrix @ basis[-1]
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_conjugate_gradient(seed):
    draw = random.Random(1000 + seed)
    problem = case(draw)
    method = ConjugateGradient(
        iterations=draw.randint(0, 30),
        damping=draw.choice([0.0, 0.01, 0.3, 2.0]) * problem.scale,
        tolerance=draw.choice([0.0, 1e-3, 1e-6]),
    )
    matrix = problem.quadratic.damped(method.damping)
    size = float(torch.linalg.matrix_norm(matrix, 2))
    spaces = krylov(matrix, problem.vector, method.iterations)
    # How far conjugate gradients may go on before the residual is rounding.
    length, goal = problem.vector.norm(), max(method.tolerance, math.sqrt(problem.eps))
    wanted = [
        least
        for k, (least, _) in enumerate(spaces)
        if not solved_by(k, spaces, matrix, problem.vector, goal * length)
    ]
    try:
        solution, status = run(problem, method)
    except HypergradientError as refusal:
        assert min(wanted) <= 1e3 * problem.eps * size
        assert "raise damping above" in str(refusal)
        return
    holds(problem, method.damping, solution, status.residual)
    assert all(least > -1e-3 * size for least in wanted), "negative curvature went unseen"
    assert status.iterations <= method.iterations
    if status.iterations < method.iterations:
        assert float(status.residual) <= 1.1 * method.tolerance + 1e3 * problem.eps
    if not method.iterations:
        assert not solution.any()
    elif all(least > 1e-5 * size for least, _ in spaces):
        used = min(status.iterations, len(spaces))
        expected = spaces[used - 1][1]
        # Rounding delays the iteration; where it has not ended its residual may differ by that.
        close(problem, solution, expected, condition(matrix) ** 2)


def solved_by(number, spaces, matrix, vector, goal) -> bool:
    """Whether the minimiser over the first ``number`` dimensions is good enough."""
    return number > 0 and bool((matrix @ spaces[number - 1][1] - vector).norm() <= goal)


@pytest.mark.parametrize("seed", SEEDS)
def test_nystrom(seed):
    draw = random.Random(2000 + seed)
    problem = case(draw)
    method = Nystrom(
        rank=draw.randint(1, 15),
        damping=draw.choice([0.01, 0.3, 2.0]) * problem.scale,
        seed=draw.randint(0, 5),
    )
    hessian, count = problem.quadratic.hessian, problem.accumulation
    like = torch.zeros(len(problem.vector), dtype=problem.dtype)
    basis = sketch(like, method.rank, method.seed, count).double()
    least = float(torch.linalg.eigvalsh(basis.T @ hessian @ basis).min())
    margin = 1e3 * problem.eps * problem.scale
    try:
        solution, status = run(problem, method)
    except HypergradientError as refusal:
        assert least + method.damping <= margin
        assert "raise damping above" in str(refusal)
        return
    assert least + method.damping > -margin, "negative curvature went unseen"
    shift = 2 * max(-least, 0.0)
    image = hessian @ basis + shift * basis
    directions, core, _ = torch.linalg.svd(image, full_matrices=False)
    directions = directions[:, core > 1e-9 * problem.scale]
    middle = torch.linalg.pinv(basis.T @ image, rtol=1e-9, hermitian=True)
    approximate = image @ middle @ image.T - shift * directions @ directions.T
    system = Quadratic(approximate, problem.quadratic.mixed, problem.vector).damped(method.damping)
    expected = torch.linalg.solve(system, problem.vector)
    amplified = condition(system) * (condition(basis.T @ image) if abs(least) > margin else 1.0)
    close(problem, solution, expected, amplified)
    holds(problem, method.damping, solution, status.residual)
