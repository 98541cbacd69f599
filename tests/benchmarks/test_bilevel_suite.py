"""Stochastic bilevel methods: the value function, calls, contenders, records and pages."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

SIZES = {
    "quadratic": {"samples": 256, "size": 12, "inputs": 3},
    "logistic": {"samples": 256, "features": 5},
    "cleaning": {"samples": 128, "clean": 128},
}


@pytest.fixture
def task(benchmark_modules):
    return lambda name: importlib.import_module(f"bilevel_tasks.{name}")


@pytest.fixture
def small(task):
    return lambda name: task("problems").PROBLEMS[name](**SIZES[name])


def means(problem):
    """Hessians, mixed derivatives and linear terms of the quadratic problem."""
    a, c, d, linear = problem.lower
    b, direct, e, g, k, upper = problem.upper
    n, m = len(a), len(b)
    lower = a.T @ a / n, d.T @ c / n, linear.mean(0)
    return lower, (e.T @ e / m, k.T @ g / m, upper.mean(0), b.T @ b / m, direct.mean(0))


def test_value_and_minimum_of_the_quadratic_have_a_closed_form(task, small):
    """``h`` is quadratic too: its gradient is linear, and 0 at the minimum."""
    problem = small("quadratic")
    (hessian, mixed, linear), (above, cross, shift, own, direct) = means(problem)
    respond, rest = -torch.linalg.solve(hessian, mixed), -torch.linalg.solve(hessian, linear)

    def h(theta):
        w = respond @ theta + rest
        of_w = 0.5 * w @ above @ w + w @ cross @ theta + shift @ w
        return of_w + 0.5 * theta @ own @ theta + direct @ theta

    value = task("value").Value(problem)
    theta = problem.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(h(theta), theta)
    second = torch.autograd.functional.hessian(h, problem.theta)
    assert float(torch.linalg.eigvalsh(second)[0]) > 0
    best = problem.theta - torch.linalg.solve(second, gradient)
    assert value(problem.theta) == pytest.approx(float(h(problem.theta)), rel=1e-12)
    torch.testing.assert_close(value.gradient(problem.theta), gradient, rtol=1e-9, atol=1e-11)
    assert value.minimum() == pytest.approx(float(h(best)), rel=1e-12)


@pytest.mark.parametrize("name", ["logistic", "cleaning"])
def test_value_gradient_is_that_of_autograd_through_a_newton_step(task, small, name):
    """A Newton step from ``w*`` stays there and has its derivative by ``θ``."""
    problem = small(name)
    value = task("value").Value(problem)
    theta = problem.theta.clone().requires_grad_()
    w = value.solution(problem.theta).clone().requires_grad_()

    def lower(at):
        return problem.lower_loss(at, theta, problem.lower)

    (slope,) = torch.autograd.grad(lower(w), w, create_graph=True)
    matrix = torch.autograd.functional.hessian(lower, w.detach(), vectorize=True)
    step = w.detach() - torch.linalg.solve(matrix.detach(), slope)
    loss = problem.upper_loss(step, theta, problem.upper)
    (gradient,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(value.gradient(problem.theta), gradient, rtol=1e-8, atol=1e-12)
    assert value(problem.theta) == pytest.approx(loss.item(), rel=1e-12)


def test_value_is_known_where_a_penalty_removes_a_feature(task, small):
    """Contenders go there; 1e300 times a weight is no reason to stop. Beyond, it is infinite."""
    problem = small("logistic")
    value = task("value").Value(problem)
    theta = problem.theta.clone()
    theta[-1] = 600.0
    x, y = problem.lower
    less = replace(
        problem, lower=(x[:, :-1], y), upper=(problem.upper[0][:, :-1], *problem.upper[1:])
    )
    less = replace(less, w=problem.w[:-1])
    assert value(theta) == pytest.approx(task("value").Value(less)(theta[:-1]), rel=1e-10)
    assert value(torch.full_like(theta, torch.nan)) == np.inf


def test_calls_are_those_counted_by_hand(task, small):
    """SOBA: ``∇_w G``, ``Hx``, ``(∂²G/∂θ∂w) x``, ``∇_w F``, and ``∇_θ F`` where it has one."""
    ours, problem = task("ours"), small("quadratic")
    assert ours.calls(problem, "SOBA") == 5
    # Ten steps and ten products, then a product and a residual, and two gradients above.
    assert ours.calls(problem, "AmIGO") == 24
    # Ten steps; ten steps of each of y and z and their last gradients, by w and θ; two above.
    assert ours.calls(problem, "Penalty") == 36
    assert ours.calls(small("logistic"), "SOBA") == 4


def test_each_method_improves_in_a_few_steps(task, small):
    ours, contenders = task("ours"), task("contenders")
    assert tuple(ours.METHODS) == contenders.LIBRARIES["metaweight"].methods
    problem = small("quadratic")
    value = task("value").Value(problem)
    start, least = value(problem.theta), value.minimum()
    for name in ours.METHODS:
        trace = ours.trace(problem, name, task("traces").Settings(0.2, 1.0, 1), 6, 3)
        found = [value(torch.from_numpy(theta)) - least for theta in trace.thetas]
        assert found[-1] < 0.7 * (start - least), name
        assert len(found) == len(trace.seconds) == 2 and trace.failed is None


@pytest.mark.slow
def test_saba_has_no_noise_left(task, small):
    """At a constant step size, where SOBA's noise stays; the tables have an entry a batch."""
    problem = task("problems").quadratic(**SIZES["quadratic"], least=0.5)
    value, ours = task("value").Value(problem), task("ours")
    least, settings = value.minimum(), task("traces").Settings(0.1, 0.5, 1)
    constant = replace(ours.METHODS["SOBA"], falling=False)
    last = {}
    for name, method in {"SABA": ours.METHODS["SABA"], "SOBA": constant}.items():
        engine = ours.program(problem, method, settings, 220, 220)
        engine.watch()
        engine.run()
        last[name] = value(engine.upper.module().detach()) - least
    assert last["SABA"] < 1e-4
    assert last["SOBA"] > 1e-3


def test_a_run_that_diverges_says_so(task, small):
    trace = task("ours").trace(
        small("quadratic"), "SOBA", task("traces").Settings(9.0, 0.1, 1), 40, 10
    )
    assert "lr" in trace.failed and "diverge" in trace.failed


def test_each_batch_comes_once_an_epoch(task, small):
    batches, problem = task("batches"), small("quadratic")
    loader = batches.Shuffled(problem.batches("lower"), 3, "lower")
    given = []
    for _ in range(3):
        for batch in loader:
            assert torch.equal(batch[0], problem.lower[0].split(64)[loader.batch_number])
            given.append(loader.batch_number)
    assert given == batches.numbers(4, 3, "lower", 12).tolist()
    assert [sorted(given[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert given != batches.numbers(4, 3, "upper", 12).tolist()
    next(iter(loader))
    other = batches.Shuffled(problem.batches("lower"), 0, "lower")
    other.load_state_dict(loader.state_dict())
    left = [[(each.batch_number, len(b)) for _ in (1, 2) for b in each] for each in (loader, other)]
    assert left[0] == left[1] and len(left[0]) == 7


def require_jax():
    """Skip where JAX is not asked for: its threads break tests of the same process that fork."""
    if "JAX_TESTS" not in os.environ:
        pytest.skip("runs alone, by JAX_TESTS=1 pytest tests/benchmarks/test_bilevel_suite.py")
    pytest.importorskip("jaxopt")


@pytest.mark.slow
def test_jax_losses_are_the_same(task, small):
    require_jax()
    programs = task("jax_programs")
    jax = importlib.import_module("jax")
    for name in SIZES:
        problem = small(name)
        w = problem.w + torch.linspace(-1, 1, len(problem.w), dtype=torch.float64)
        for level, loss in zip(("lower", "upper"), programs.LOSSES[name], strict=True):
            batch, theirs = problem.batches(level)[1], getattr(problem, f"{level}_loss")
            at = [t.clone().requires_grad_() for t in (w, problem.theta)]
            expected = theirs(*at, batch)
            slopes = torch.autograd.grad(expected, at, allow_unused=True)
            given = [t.numpy() for t in (w, problem.theta)]
            found = jax.value_and_grad(loss, argnums=(0, 1))(*given, [t.numpy() for t in batch])
            assert float(found[0]) == pytest.approx(expected.item(), rel=1e-12)
            for slope, other in zip(slopes, found[1], strict=True):
                values = 0 if slope is None else slope.numpy()
                np.testing.assert_allclose(np.asarray(other), values, rtol=1e-9, atol=1e-12)


def test_a_jax_program_is_the_same_step_for_step(task, small):
    """stocBiO keeps nothing from step to step and moves one variable after the other, as ours."""
    require_jax()
    problem, settings = small("quadratic"), task("traces").Settings(0.1, 0.3, 5)
    theirs = task("jax_programs").Program(problem, "StocBiO").trace(settings, 6, 2)
    ours = task("ours").trace(problem, "StocBiO", settings, 6, 2)
    np.testing.assert_allclose(theirs.thetas, ours.thetas, rtol=1e-10)
    # Ours takes one product more, the residual by which it notices that a series diverges.
    assert task("jax_programs").calls(problem, "StocBiO") == 23


@pytest.mark.slow
def test_each_jax_program_comes_near_the_minimum(task, small):
    require_jax()
    programs, problem = task("jax_programs"), small("quadratic")
    value, settings = task("value").Value(problem), task("traces").Settings(0.1, 0.3, 1)
    start, least = value(problem.theta), value.minimum()
    assert tuple(programs.ALGORITHMS) == task("contenders").LIBRARIES["JAX"].methods
    for name in programs.ALGORITHMS:
        trace = programs.Program(problem, name).trace(settings, 200, 100)
        end = value(torch.from_numpy(trace.thetas[-1]))
        assert end - least < 0.1 * (start - least), name


def test_boat_unrolls_the_same_steps(task, small):
    pytest.importorskip("boat_torch")
    problem, settings = small("quadratic"), task("traces").Settings(0.1, 0.3, 5)
    theirs = task("boat").trace(problem, "Unroll", settings, 4, 2)
    ours = task("ours").trace(problem, "Unroll", settings, 4, 2)
    np.testing.assert_allclose(theirs.thetas, ours.thetas, rtol=1e-10)
    assert task("boat").calls(problem, "Unroll") == task("ours").calls(problem, "Unroll") == 31
