"""A hook that renews the soft targets of online confident learning at the end of each epoch."""

from __future__ import annotations

from metaweight.engines import Engine, Hook
from metaweight.problems import ConfigurationError, Problem

from .online_confident_learning import OnlineConfidentLearning


class OnlineConfidentLearningHook(Hook):
    """Call ``reset()`` of every criterion at the end of an epoch of its problem's first loader.

    This happens before the first batch of the next epoch, which already trains with the new
    targets. In a program of several processes, all end their epochs at the same step, with the same
    statistics.

    At the start of a run, the hook checks that each criterion is part of its problem's module.
    Otherwise it would collect each evaluation of a hypergradient as if it were a training step.

    Raises:
        ConfigurationError: At the start of a run, when there is no criterion, when one is outside
            its problem's module, or when ``EngineConfig(roll_back=True)`` would undo resets.
    """

    def run_start(self, engine: Engine) -> None:
        found = False
        for problem in engine.problems:
            inside = criteria(problem)
            found = found or bool(inside)
            _require_inside(problem, inside)
            if inside and problem.parents and engine.config.roll_back:
                raise ConfigurationError(
                    f"Problem {problem.name!r} renews soft targets where an epoch ends, and "
                    "EngineConfig(roll_back=True) would put the old ones back with the rest of "
                    "the module; use roll_back=False."
                )
        if not found:
            raise ConfigurationError(
                "OnlineConfidentLearningHook found no OnlineConfidentLearning in the modules of "
                f"problems {', '.join(p.name for p in engine.problems)}; give one of them "
                "module=WithCriterion(network, criterion)."
            )

    def epoch_end(self, engine: Engine, problem: Problem) -> None:
        del engine
        for criterion in criteria(problem):
            criterion.reset()


def criteria(problem: Problem) -> list[OnlineConfidentLearning]:
    """Return the criteria in the module of ``problem``."""
    return [m for m in problem.module.modules() if isinstance(m, OnlineConfidentLearning)]


def _require_inside(problem: Problem, inside: list[OnlineConfidentLearning]) -> None:
    for name, value in vars(problem).items():
        if isinstance(value, OnlineConfidentLearning) and value not in inside:
            raise ConfigurationError(
                f"The criterion {name!r} of problem {problem.name!r} is not part of its module, so "
                "that a hypergradient would collect predictions again each time it evaluates the "
                "loss; give the problem module=WithCriterion(network, criterion)."
            )
