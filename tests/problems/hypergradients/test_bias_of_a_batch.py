"""The check of a hypergradient tells what the choice of a batch does to a linear solve."""

from __future__ import annotations

import pytest
import torch
from support.quadratic import TARGET
from support.stochastic_quadratic import batches, program

from metaweight import ConjugateGradient, FiniteDifference


def checked(method, **settings):
    engine = program(method, iterations=2, **settings)
    engine.run()
    (report,) = engine.check_hypergradient()
    return engine, report


@pytest.mark.parametrize("every", [1, 2])
def test_is_the_difference_of_two_solves(every):
    """The vector is that of the last upper batch; one solve has the last lower batch, the other
    the one before. The program stands still, so each is a closed form."""
    engine, report = checked(ConjugateGradient(iterations=6), noise=0.1, every=every)
    data, last = batches(0.1), engine.lower.count // engine.lower.config.gradient_accumulation - 1
    v = engine.lower.module().detach() - TARGET - (engine.upper.cur_batch - TARGET)
    first, second = (
        -mixed.T @ torch.linalg.solve(hessian, v)
        for hessian, mixed, _ in (data[last % 4], data[(last - 1) % 4])
    )
    found = report.another_batch
    assert found.relative_error == pytest.approx(float((second - first).norm() / first.norm()))
    assert "the same solve on another batch: relative error" in str(report)
    assert "average over many" not in str(report)
    assert report.trustworthy


def test_a_large_one_names_what_averages_over_batches():
    _, report = checked(ConjugateGradient(iterations=6, damping=0.5), noise=0.5)
    assert report.another_batch.relative_error > 0.5
    assert "SOBA() or warm=True average over many" in str(report)


def test_there_is_none_of_equal_batches_and_of_other_methods():
    _, report = checked(ConjugateGradient(iterations=6))
    assert report.another_batch.relative_error < 1e-12
    for method in (FiniteDifference(), ConjugateGradient(iterations=6, batches="fresh")):
        _, report = checked(method)
        assert report.another_batch is None
        assert "another batch" not in str(report)
