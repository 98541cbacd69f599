"""The implicit methods against closed forms of quadratic programs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from metaweight.problems import lower_view
from support.quadratic import (
    TARGET,
    Quadratic,
    bilevel,
    error,
    evaluated,
    flat,
    gradients,
    spread,
    three_levels,
    with_eigenvalues,
)
from torch.utils._python_dispatch import TorchDispatchMode

from metaweight import (
    Config,
    ConjugateGradient,
    HypergradientError,
    Neumann,
    Nystrom,
)

N, CONDITION = 50, 1e4


ILL = with_eigenvalues(spread(N, 1 / CONDITION))


@pytest.mark.parametrize("damping", [0.0, 5e-2])
def test_neumann_converges_at_its_theoretical_rate(damping):
    """Its error shrinks by the spectral radius of ``I - α(A + damping)`` with every term.

    By 200 terms all other eigenvalues have died out to 1e-7 of the slowest one.
    """
    quadratic = with_eigenvalues(torch.cat([torch.tensor([1e-4]).double(), spread(N - 1, 5e-2)]))
    alpha = 1.6
    radius = torch.linalg.eigvalsh(torch.eye(N) - alpha * quadratic.damped(damping)).abs().max()
    errors, residuals = [], []
    for iterations in (200, 201):
        method = Neumann(iterations=iterations, alpha=alpha, damping=damping)
        gradient, v, status = evaluated(quadratic, method)
        errors.append(error(gradient, quadratic.product(v, damping)))
        residuals.append(float(status.residual))
    if damping:
        assert errors[1] < 1e-5  # The slowest factor is 1 - 1.6 * 0.0501.
    assert errors[1] / errors[0] == pytest.approx(float(radius), abs=2e-6)
    assert residuals[1] / residuals[0] == pytest.approx(float(radius), abs=2e-6)


def test_neumann_error_never_shrinks_slower_than_its_rate():
    radius = 1 - 1.5e-4
    errors = []
    for iterations in (0, 1, 2, 4, 8, 16):
        gradient, v, _ = evaluated(ILL, Neumann(iterations=iterations, alpha=1.5))
        exact = torch.linalg.solve(ILL.hessian, v)
        left = torch.linalg.matrix_power(torch.eye(N) - 1.5 * ILL.hessian, iterations + 1) @ exact
        torch.testing.assert_close(gradient, -ILL.mixed.T @ (exact - left), rtol=1e-9, atol=1e-9)
        errors.append((iterations, float(left.norm())))
    for (k, before), (later, after) in pairwise(errors):
        assert after <= before * radius ** (later - k) * (1 + 1e-12)


METHODS = {
    "cg": ConjugateGradient(iterations=60, damping=5e-2),
    "neumann": Neumann(iterations=80, alpha=1.4, damping=0.2),
    "nystrom": Nystrom(rank=N, damping=1e-2),
}
SOLVED = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@SOLVED
@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e170], ids=["", "tiny v", "huge v"])
def test_every_method_solves_the_damped_system(method, scale):
    """To 1e-9 in double precision, also where squares of the vector leave its range."""
    engine = bilevel(ILL, Config(type=method))
    engine.run()
    vector = [scale * torch.cos(p.detach() * 9) for p in engine.lower.module.blocks]
    theta = list(engine.upper.module.parameters())
    product = method.vjp(lower_view(engine.lower), vector, theta)
    expected = ILL.product(flat(vector) / scale, method.damping)
    assert error(flat(product.values) / scale, expected) < 1e-9
    assert float(product.status.residual) < 1e-9


@SOLVED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_numbers(method, dtype):
    """fp32: 100 (the condition number) * 1e-7 * sqrt(50). bf16 stands for parameters in 16 bits:
    products carry an error of 4e-3, which the inverse magnifies; solver vectors stay in fp32."""
    quadratic = ILL.to(dtype)
    gradient, v, status = evaluated(quadratic, replace(method, damping=0.2))
    expected = ILL.product(v.double(), 0.2)
    assert gradient.dtype == dtype
    assert status.residual.dtype == torch.float32
    assert error(gradient, expected) < (1e-4 if dtype == torch.float32 else 5e-2)


@SOLVED
def test_micro_batches_equal_their_mean(method):
    """Three micro-batches whose Hessians differ by more than their mean is long."""
    gradient, v, _ = evaluated(ILL, method, gradient_accumulation=3)
    assert error(gradient, ILL.product(v, method.damping)) < 1e-9


@SOLVED
@pytest.mark.parametrize("accumulation", [1, 2])
def test_along_a_path_of_three_levels(method, accumulation):
    """``(dw/dθ)ᵀ (dm/dw)ᵀ v``, the closed form of each level applied in turn."""
    leaf = with_eigenvalues(spread(7, 1e-1), inputs=3, seed=1)
    middle = with_eigenvalues(spread(N, 1e-2), inputs=7, seed=2)
    engine = three_levels(leaf, middle, Config(type=method, gradient_accumulation=accumulation))
    gradient = gradients(engine, "top")
    v = engine.middle.module().detach() - TARGET
    expected = leaf.product(middle.product(v, method.damping), method.damping)
    assert error(gradient, expected) < 1e-9
    assert engine.leaf_.hypergradient_status.method == type(method).__name__


@SOLVED
@pytest.mark.parametrize("loss", ["linear in w", "without w"])
def test_a_loss_without_curvature(method, loss):
    """``H = 0``: the damped solution is ``v / damping``."""
    zero = torch.zeros(N, N, dtype=torch.float64)
    quadratic = Quadratic(zero, ILL.mixed, ILL.linear)
    engine = bilevel(quadratic, Config(type=method))
    gradient = gradients(engine, "upper")
    v = engine.lower.module().detach() - TARGET
    assert error(gradient, -ILL.mixed.T @ v / method.damping) < 1e-9
    if loss == "without w":
        theta = list(engine.upper.module.parameters())
        for unrelated in (lambda batch: torch.ones(()), lambda batch: sum(p.sum() for p in theta)):
            engine.lower.training_step = unrelated
            product = method.vjp(lower_view(engine.lower), engine.lower.module.split(v), theta)
            assert all((t == 0).all() for t in product.values)
            assert 0 <= float(product.status.residual) < 1e-9


def test_neumann_refuses_a_series_that_diverges():
    with pytest.raises(
        HypergradientError,
        match=r"Neumann\(.*alpha=2.5.*'lower' diverges: its terms have grown.*choose alpha below "
        r"2 / λ_max\(H \+ damping I\), here at most 1\.9\. .*as they were",
    ):
        evaluated(ILL, Neumann(iterations=20, alpha=2.5))
    bent = with_eigenvalues(torch.cat([-torch.tensor([0.5]).double(), spread(N - 1, 0.1)]))
    with pytest.raises(HypergradientError, match=r"curves downwards: raise damping above 0\.5"):
        evaluated(bent, Neumann(iterations=40, alpha=1.0))
    with pytest.raises(HypergradientError, match=r"'lower' is not finite; .*choose alpha below 2"):
        evaluated(ILL, Neumann(iterations=200, alpha=1e3))


@SOLVED
def test_numbers_that_are_not_finite_are_refused(method):
    """``|w|^1.5`` has a gradient at 0 but no second derivative."""
    engine = bilevel(ILL, Config(type=method))
    engine.run()
    lower = engine.lower
    lower.module.blocks[0].data.zero_()
    lower.training_step = lambda batch: lower.module().abs().pow(1.5).sum()
    vector = [torch.ones_like(p) for p in lower.module.blocks]
    for few in (method, replace(method, **({"rank": 1} if "rank" in vars(method) else {}))):
        with pytest.raises(HypergradientError, match="through problem 'lower' is not finite; "):
            few.vjp(lower_view(lower), vector, list(engine.upper.module.parameters()))


class Reads(TorchDispatchMode):
    """Counts how often a tensor is read on the host."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += "_local_scalar_dense" in str(func) or "is_nonzero" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        (ConjugateGradient(iterations=40), 3),
        (ConjugateGradient(iterations=40, tolerance=1e-20), 43),
        (Neumann(iterations=40), 2),
        (Nystrom(rank=20), 3),
    ],
)
def test_the_host_is_read_at_the_end_only(method, reads):
    """In a row, which waits for the device once; a tolerance asks before every iteration."""
    engine = bilevel(ILL, Config(type=method))
    engine.run()
    vector = [torch.ones_like(p) for p in engine.lower.module.blocks]
    with Reads() as seen:
        method.vjp(lower_view(engine.lower), vector, list(engine.upper.module.parameters()))
    assert seen.number == reads
