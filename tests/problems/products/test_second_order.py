"""Each method against a closed form or a naive second-order program, in float64."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.hypergradients import resolve
from metaweight.problems.hypergradients.conjugate_gradient import conjugate_gradient
from metaweight.problems.hypergradients.sama import adam_jacobian
from support.naive import hessian_matrix, mixed_product, relative_error
from support.quadratic import evaluated, spread, with_eigenvalues
from support.reweighting import Plain, program

from metaweight import (
    Config,
    ConjugateGradient,
    FiniteDifference,
    Neumann,
)

D = 7
QUADRATIC = with_eigenvalues(spread(D, 0.4), inputs=3)


def test_darts_on_a_quadratic_is_the_identity_inverse():
    """FD is exact on a quadratic; what is left is rounding, 1e-16 / alpha."""
    gradient, v, _ = evaluated(QUADRATIC, FiniteDifference())
    torch.testing.assert_close(gradient, -QUADRATIC.mixed.T @ v, rtol=1e-9, atol=1e-11)


def test_conjugate_gradient_is_the_inverse():
    gradient, v, _ = evaluated(QUADRATIC, ConjugateGradient(iterations=D))
    torch.testing.assert_close(gradient, QUADRATIC.product(v), rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1])
def test_cg_alpha_does_not_change_the_answer(alpha):
    """(αH) x = v, scaled back: the same x for every α."""
    method = resolve(Config(type="cg", cg_iterations=D, cg_alpha=alpha))
    gradient, v, _ = evaluated(QUADRATIC, method)
    torch.testing.assert_close(gradient, QUADRATIC.product(v), rtol=1e-9, atol=0)


def test_conjugate_gradient_stays_put_once_solved():
    a = torch.eye(3, dtype=torch.float64) * 2
    right = [torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)]
    solution = conjugate_gradient(lambda p: [a @ p[0]], right, iterations=10)
    assert torch.equal(solution[0], right[0] / 2)


@pytest.mark.parametrize("iterations", [0, 1, 5, 400])
def test_neumann_is_its_series(iterations):
    """α Σ_{k ≤ K} (I - αA)^k v, summed with matrices; 400 terms reach the inverse itself."""
    alpha = 0.2
    gradient, v, _ = evaluated(QUADRATIC, Neumann(iterations=iterations, alpha=alpha))
    step = torch.eye(D, dtype=torch.float64) - alpha * QUADRATIC.hessian
    series = sum(torch.linalg.matrix_power(step, k) @ v for k in range(iterations + 1))
    expected = -alpha * QUADRATIC.mixed.T @ series
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    if iterations == 400:
        torch.testing.assert_close(gradient, QUADRATIC.product(v), rtol=1e-9, atol=0)


def network_case(method, extra):
    engine = program(Plain, config=Config(type=method), extra=extra, dropout=0.3)
    engine.run()
    classifier, theta = engine.classifier, list(engine.judge.module.parameters())
    weights = list(classifier.module.parameters())
    vector = [torch.linspace(-1, 2, p.numel(), dtype=p.dtype).reshape(p.shape) for p in weights]

    def loss():
        classifier.step_state.trajectory.window[0].random.restore()
        return classifier.training_step(classifier.step_state.trajectory.window[0].batch)

    return classifier, theta, weights, vector, loss


def test_darts_is_the_mixed_derivative_of_the_attached_loss_under_dropout_and_batch_norm():
    """The loss is not quadratic: O(alpha²) = 1e-4 at the default step."""
    classifier, theta, weights, vector, loss = network_case(FiniteDifference(), "attached")
    expected = mixed_product(loss, weights, theta, vector)
    actual = FiniteDifference().vjp(lower_view(classifier), vector, theta).values
    assert relative_error(actual, expected) < 1e-3
    finer = FiniteDifference(alpha=1e-4).vjp(lower_view(classifier), vector, theta).values
    assert relative_error(finer, expected) < 1e-6


def test_implicit_methods_respect_detach():
    classifier, theta, weights, vector, loss = network_case(Neumann(iterations=0), None)
    expected = mixed_product(loss, weights, theta, [0.3 * v for v in vector])
    actual = Neumann(iterations=0, alpha=0.3).vjp(lower_view(classifier), vector, theta).values
    assert relative_error(actual, expected) < 1e-10


def test_neumann_uses_the_network_hessian():
    classifier, theta, weights, vector, loss = network_case(Neumann(), None)
    hessian = hessian_matrix(loss, weights)
    flat = torch.cat([v.reshape(-1) for v in vector])
    alpha = 0.05
    solved = alpha * (flat + (flat - alpha * hessian @ flat))
    pieces = solved.split([w.numel() for w in weights])
    solved_list = [s.reshape(w.shape) for s, w in zip(pieces, weights, strict=True)]
    expected = mixed_product(loss, weights, theta, solved_list)
    actual = Neumann(iterations=1, alpha=alpha).vjp(lower_view(classifier), vector, theta).values
    assert relative_error(actual, expected) < 1e-10


def test_adam_jacobian_is_the_derivative_of_adams_step():
    """Against autograd of lr m / (sqrt(v) + eps) with m, v as functions of the last gradient.

    The source's formula leaves eps out of one place, so eps is made small.
    """
    lr, beta1, beta2, eps = 0.1, 0.9, 0.999, 1e-12
    generator = torch.Generator().manual_seed(1)
    old_m = torch.randn(5, generator=generator, dtype=torch.float64)
    old_v = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    g = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    m, v = beta1 * old_m + (1 - beta1) * g, beta2 * old_v + (1 - beta2) * g**2
    expected = torch.autograd.grad((lr * m / (v.sqrt() + eps)).sum(), g)[0]
    actual = adam_jacobian(
        {"betas": (beta1, beta2), "eps": eps, "lr": lr},
        {"exp_avg": m.detach(), "exp_avg_sq": v.detach()},
        g.detach(),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)
