"""Check that the steps of a lower problem are those of its optimizer."""

from __future__ import annotations

from ..base.errors import ConfigurationError
from ..unrolling import OptimizerStep


def require_optimizer_steps(step: OptimizerStep, asked: str, instead: str) -> None:
    """Refuse a problem with ``custom_optimizer_step``.

    Args:
        step: The optimizer step of the lower problem.
        asked: The requested method, for messages.
        instead: What to choose instead, for messages.

    Raises:
        ConfigurationError: When the steps are not those of a torch optimizer.
    """
    if step.optimizer is None or step.is_custom:
        raise ConfigurationError(
            f"Problem {step.name!r} asks for {asked} but takes steps of its own in "
            f"custom_optimizer_step, which are unknown; give it a torch optimizer, or {instead}."
        )
