"""Initial parameters of inner loops that an upper problem learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base.errors import ConfigurationError
from ..base.overridables import Overridables, overrides


class LearnsStart(Protocol):
    """A problem whose loops may start at learned initial parameters."""

    module: Any

    @property
    def name(self) -> str:
        """The problem's name, for messages."""

    def initial_parameters(self) -> Mapping[str, Tensor]:
        """Return the start of a loop; see :meth:`Overridables.initial_parameters`."""

    def on_inner_loop_start(self) -> None:
        """Called before the first step of a loop."""


def owns_start(problem: LearnsStart) -> bool:
    """Return whether the problem's class overrides ``initial_parameters``."""
    return type(problem).initial_parameters is not Overridables.initial_parameters  # type: ignore[comparison-overlap]


def moves_at_start(problem: LearnsStart) -> bool:
    """Return whether the start of a loop may change the problem's parameters."""
    return overrides(problem, "on_inner_loop_start") or owns_start(problem)


def start_of_loop(problem: LearnsStart) -> dict[Tensor, Tensor]:
    """Return ``initial_parameters()`` keyed by parameter instead of name.

    Raises:
        ConfigurationError: For an unknown name or a wrong shape.
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


def apply_initial_parameters(problem: LearnsStart) -> None:
    """Set the parameters to the start of the loop."""
    with torch.no_grad():
        for parameter, value in start_of_loop(problem).items():
            parameter.copy_(value)
