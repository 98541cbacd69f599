"""Where inner loops start, when an upper problem owns it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.errors import ConfigurationError
from ..base.overridables import Overridables

if TYPE_CHECKING:
    from ..problem import Problem


def owns_start(problem: Problem) -> bool:
    """Whether the problem's class defines initial parameters."""
    return type(problem).initial_parameters is not Overridables.initial_parameters


def moves_at_start(problem: Problem) -> bool:
    """Whether the start of a loop may change the problem's parameters."""
    own = type(problem).on_inner_loop_start is not Overridables.on_inner_loop_start
    return own or owns_start(problem)


def start_of_loop(problem: Problem) -> dict[Tensor, Tensor]:
    """Return what ``initial_parameters()`` gives, keyed by the parameter it is for.

    Raises:
        ConfigurationError: For an unknown name or another shape.
    """
    if not owns_start(problem):
        return {}
    own = dict(problem.module.named_parameters())
    given = problem.initial_parameters()
    for name, value in given.items():
        if name not in own:
            raise ConfigurationError(
                f"initial_parameters() of problem {problem.name!r} returns {name!r}, which is no "
                f"parameter of its module; its parameters are {', '.join(own)}."
            )
        if value.shape != own[name].shape:
            raise ConfigurationError(
                f"initial_parameters() of problem {problem.name!r} returns shape "
                f"{tuple(value.shape)} for {name!r}, which has shape {tuple(own[name].shape)}."
            )
    return {own[name]: value for name, value in given.items()}


def apply_initial_parameters(problem: Problem) -> None:
    """Put the parameters where the loop starts."""
    if not owns_start(problem):
        return
    with torch.no_grad():
        for parameter, value in start_of_loop(problem).items():
            parameter.copy_(value)
