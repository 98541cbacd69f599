"""The check of hooks that look at the weights that a problem declares."""

from __future__ import annotations

from collections.abc import Sequence

from metaweight.problems import ConfigurationError, GraphError, Problem, ReweightedProblem


def require_declared_weights(who: str, name: str, problems: Sequence[Problem]) -> None:
    """Refuse a problem that does not declare its weights.

    Args:
        who: The hook that looks at them, for an error.
        name: Name of the problem.
        problems: Those of the engine.

    Raises:
        GraphError: When there is no problem of that name.
        ConfigurationError: When the problem does not declare its weights.
    """
    found = next((p for p in problems if p.name == name), None)
    if found is None:
        raise GraphError(
            f"{who}({name!r}) names a problem that is not among those of the engine "
            f"({', '.join(p.name for p in problems)}); give one of these."
        )
    if not isinstance(found, ReweightedProblem) or not found.declares_its_loss:
        raise ConfigurationError(
            f"{who}({name!r}) watches the weights of a ReweightedProblem, and "
            f"{type(found).__name__} does not declare any; derive it from ReweightedProblem and "
            "define sample_losses and sample_weights, without a training_step of its own."
        )
