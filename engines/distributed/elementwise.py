"""Whether an optimizer updates each entry by itself, so that it can update part of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.unrolling.torch_rule import twin_of
from torch import Tensor

ENTRYWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
STEPS = 3


def require_entrywise(problem: Problem, world: int) -> None:
    """Refuse an optimizer that needs whole parameters; those unknown are tried on small ones.

    Raises:
        ConfigurationError: Naming it and what to use instead.
    """
    optimizer = problem.optimizer
    if type(optimizer) in ENTRYWISE:
        return
    reason = _reason(optimizer)
    if reason is not None:
        raise ConfigurationError(
            f"Problem {problem.name!r} has the optimizer {type(optimizer).__name__}, {reason}, so "
            f"that EngineConfig(strategy='fsdp') cannot give each of {world} processes a part of "
            "every parameter; use strategy='zero' or 'distributed', or an optimizer such as AdamW "
            "that updates each entry by itself."
        )


def _reason(optimizer: Any) -> str | None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return "which is no torch.optim.Optimizer"
    if isinstance(optimizer, torch.optim.LBFGS):
        return "which keeps one state for all parameters"
    if any(isinstance(value, torch.optim.Optimizer) for value in vars(optimizer).values()):
        return "which holds another optimizer"
    for group in optimizer.param_groups:
        for dimensions in {p.dim() for p in group["params"]}:
            try:
                alike = _updates_parts_alike(optimizer, group, dimensions)
            except Exception as error:
                return f"which cannot update a part of a parameter ({error})"
            if not alike:
                return "whose update of an entry depends on the others"
    return None


def _updates_parts_alike(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], dimensions: int
) -> bool:
    """Whether a small parameter and its two halves, in rows, end at the same."""
    device = group["params"][0].device
    generator = torch.Generator().manual_seed(0)
    shape = [4, 3, *([2] * dimensions)][:dimensions]
    start, *gradients = (
        torch.randn(shape, generator=generator).to(device) for _ in range(1 + STEPS)
    )
    if start.numel() < 2:
        return True
    whole = _stepped(optimizer, group, start, gradients)
    rows = [t.reshape(-1).tensor_split(2) for t in (start, *gradients)]
    halves = [_stepped(optimizer, group, first, later) for first, *later in zip(*rows, strict=True)]
    return torch.allclose(whole.reshape(-1), torch.cat(halves), rtol=1e-4, atol=1e-5)


def _stepped(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], start: Tensor, gradients: Any
) -> Tensor:
    """Return where a copy of ``optimizer`` takes a parameter."""
    parameter = torch.nn.Parameter(start.clone())
    twin = twin_of(optimizer)
    # At a learning rate of 0, as a warm-up begins, nothing would be seen.
    settings = {"lr": 0.1} if "lr" in group else {}
    twin.param_groups = [{**group, **settings, "params": [parameter]}]
    twin.state = type(optimizer.state)(dict)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        type(optimizer).step(twin)
    return parameter.detach()
