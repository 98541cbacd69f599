"""Optimizer steps whose learning rate is a tensor, so that a graph of them can take others."""

from __future__ import annotations

import torch
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.kernels.torch_internals import optimizer_hooks
from metaweight.problems.unrolling.rules import RULES
from torch import Tensor

RATE = "lr"


def require_known_update(problem: Problem) -> None:
    """Refuse an optimizer whose steps cannot be written as operations of tensors.

    Raises:
        ConfigurationError: Naming it.
    """
    kind = type(problem.optimizer)
    own = type(problem).custom_optimizer_step is not Problem.custom_optimizer_step
    if kind in RULES and not own and not optimizer_hooks(problem.optimizer):
        return
    what = "its custom_optimizer_step" if own else f"{kind.__name__} or its hooks"
    known = ", ".join(rule.__name__ for rule in RULES)
    raise ConfigurationError(
        f"EngineConfig(capture=...) cannot capture steps of problem {problem.name!r} by {what}; "
        f"give one of {known} without hooks, or leave capture out."
    )


def rates_of(problem: Problem) -> list[float]:
    """Return the present learning rate of each group."""
    return [float(group[RATE]) for group in problem.optimizer.param_groups]


def put_rates(problem: Problem, rates: list[float] | list[Tensor]) -> None:
    """Set the learning rate of each group."""
    for group, rate in zip(problem.optimizer.param_groups, rates, strict=True):
        group[RATE] = rate


@torch.no_grad()
def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Take a step by the rule of the optimizer's kind, in place."""
    rule = RULES[type(optimizer)]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            # Of plain SGD an empty buffer stands for none.
            present = {key: value for key, value in state.items() if value is not None}
            new, after = rule(parameter, parameter.grad, present, group)
            parameter.copy_(new)
            for key, value in after.items():
                if key in present:
                    present[key].copy_(value)
    # For schedulers, which ask whether the optimizer has stepped before them.
    optimizer._opt_called = True  # type: ignore[attr-defined]
