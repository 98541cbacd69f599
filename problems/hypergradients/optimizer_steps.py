"""Refusing lower problems whose steps are not their optimizer's."""

from __future__ import annotations

import warnings

from ..base.errors import ConfigurationError
from ..unrolling import OptimizerStep


def require_optimizer_steps(step: OptimizerStep, asked: str, instead: str) -> None:
    """Refuse a problem that steps by itself, and warn of callbacks that change its steps.

    Args:
        step: How the lower problem takes its steps.
        asked: What was asked of it.
        instead: What to choose instead.

    Raises:
        ConfigurationError: When its steps are not those of a torch optimizer.
    """
    if step.optimizer is None or step.is_custom:
        raise ConfigurationError(
            f"Problem {step.name!r} asks for {asked} but takes steps of its own in "
            f"custom_optimizer_step, which are unknown; give it a torch optimizer, or {instead}."
        )
    for name in step.callbacks:
        warnings.warn(
            f"{name} changes the steps of problem {step.name!r} in a way {asked} cannot see; it "
            "goes on as if it did nothing.",
            stacklevel=2,
        )
