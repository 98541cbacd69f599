"""Optimizer steps whose learning rate is a tensor, so that a graph of them can take others."""

from __future__ import annotations

import torch
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.kernels.torch_internals import optimizer_hooks
from metaweight.problems.unrolling.rules import RULES


def require_known_update(problem: Problem) -> None:
    """Refuse an optimizer whose steps cannot be written as operations of tensors.

    Raises:
        ConfigurationError: Naming it.
    """
    if problem.optimizer is None:
        raise ConfigurationError(
            f"EngineConfig(capture=...) cannot capture steps of problem {problem.name!r}, which "
            "has no optimizer; give it one, or leave capture out."
        )
    kind = type(problem.optimizer)
    given = [p for group in problem.optimizer.param_groups for p in group["params"]]
    if any(p.itemsize < 4 for p in given):
        raise ConfigurationError(
            f"EngineConfig(capture=...) cannot capture steps of problem {problem.name!r}, whose "
            "parameters are of 16 bits, in which its update would round otherwise; keep them in "
            "float32 with Config(precision='bf16'), or leave capture out."
        )
    if kind is not torch.optim.SGD and any(p.is_complex() for p in given):
        raise ConfigurationError(
            f"EngineConfig(capture=...) cannot capture steps of complex parameters, of problem "
            f"{problem.name!r}, by {kind.__name__}; use SGD, or leave capture out."
        )
    own = type(problem).custom_optimizer_step is not Problem.custom_optimizer_step
    if kind in RULES and not own and not optimizer_hooks(problem.optimizer):
        return
    what = "its custom_optimizer_step" if own else f"{kind.__name__} or its hooks"
    known = ", ".join(rule.__name__ for rule in RULES)
    raise ConfigurationError(
        f"EngineConfig(capture=...) cannot capture steps of problem {problem.name!r} by {what}; "
        f"give one of {known} without hooks, or leave capture out."
    )


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
                if key not in present:
                    raise ConfigurationError(
                        "EngineConfig(capture=...) cannot capture the first step of a parameter, "
                        f"of shape {tuple(parameter.shape)}, which had no gradient in earlier ones "
                        f"and of which {type(optimizer).__name__} has no {key} yet; let all "
                        "parameters have gradients from the start, or leave capture out."
                    )
                present[key].copy_(value)
    # For schedulers, which ask whether the optimizer has stepped before them.
    optimizer._opt_called = True  # type: ignore[attr-defined]
