"""Which parts of a step are finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.step.finiteness import finiteness
from support.small import bilevel
from torch import Tensor, nn

BAD = [float("nan"), float("inf"), float("-inf")]


def prepared() -> Any:
    problem = bilevel().outer
    problem.module.w.grad = torch.ones(1, dtype=torch.float64)
    return problem


@pytest.mark.parametrize("bad", BAD)
def test_a_loss_a_gradient_and_a_part_are_told_apart(bad: float) -> None:
    problem, loss = prepared(), torch.tensor(1.0)
    assert finiteness(problem, loss).whole
    found = finiteness(problem, torch.tensor(bad))
    assert (found.loss, found.gradient, found.culprits) == (False, True, ())
    problem.module.w.grad.fill_(bad)
    problem.step_state.hypergradient_terms = {
        "a": [torch.ones(2)],
        "b": [torch.ones(2), torch.tensor([1.0, bad])],
    }
    found = finiteness(problem, loss)
    assert (found.loss, found.gradient, found.culprits) == (True, False, ("b",))
    assert not found.overflow


def test_large_values_are_finite() -> None:
    problem = prepared()
    problem.module.w.grad.fill_(1e300)
    assert finiteness(problem, torch.tensor(1.0)).whole


def gradient_of(parameters: list[Tensor], gradients: list[Tensor]) -> Any:
    problem = bilevel().outer
    problem.module = nn.ParameterList(parameters)
    problem.optimizer = torch.optim.SGD(problem.module.parameters(), 0.1)
    for parameter, gradient in zip(problem.module, gradients, strict=True):
        parameter.grad = gradient
    return problem


def test_mixed_types_empty_and_sparse_gradients() -> None:
    values = [torch.zeros(2, 2), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(0)]
    gradients = [
        torch.sparse_coo_tensor([[0], [1]], [2.0], (2, 2), check_invariants=True),
        torch.ones(3, dtype=torch.bfloat16),
        torch.zeros(0),
    ]
    parameters = [nn.Parameter(v) for v in values]
    problem = gradient_of(parameters, gradients)
    assert finiteness(problem, torch.tensor(1.0)).whole
    parameters[1].grad = torch.tensor([1.0, float("nan"), 1.0], dtype=torch.bfloat16)
    assert not finiteness(problem, torch.tensor(1.0)).gradient


def test_no_gradient_at_all_is_finite() -> None:
    assert finiteness(bilevel().outer, torch.tensor(1.0)).whole
