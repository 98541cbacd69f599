"""How the weight of a consistency loss rises over a run.

With ``u = clip((t - T_0) / (T_1 - T_0), 0, 1)`` at step ``t``, between the steps ``T_0`` and
``T_1``::

    sigmoid     exp(-5 (1 - u)²), which begins at e⁻⁵ = 0.0067
    linear      u
    constant    1

Sources: sigmoid: Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017
(arXiv:1610.02242); linear: Lee, "Pseudo-Label", ICML Workshop 2013.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from metaweight.engines import Engine, Hook
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.base.settings import is_number, is_positive, shown
from metaweight.problems.references import require_problem

if TYPE_CHECKING:
    from .problems import SemiSupervisedProblem

Shape = Literal["sigmoid", "linear", "constant"]
SHAPES = ("sigmoid", "linear", "constant")


def ramp(shape: Shape, step: float, length: float) -> float:
    """Return the height of a ramp in [0, 1] at ``step`` of ``length``.

    Raises:
        ConfigurationError: For another shape, or a length that is not above 0.
    """
    if shape not in SHAPES:
        raise ConfigurationError(
            f"A ramp of shape {shape!r} is not one of {', '.join(SHAPES)}; choose one of these."
        )
    if not is_positive(length):
        raise ConfigurationError(
            f"A ramp of length {length} was asked for; give a finite number of steps above 0."
        )
    share = min(max(step / length, 0.0), 1.0)
    if shape == "sigmoid":
        return math.exp(-5.0 * (1.0 - share) ** 2)
    return share if shape == "linear" else 1.0


@dataclass(frozen=True)
class Ramp:
    """A weight that rises from the start of a run, or from ``begin``, to ``weight``.

    Args:
        weight: The weight at the top, at least 0.
        shape: ``"sigmoid"``, ``"linear"`` or ``"constant"``.
        end: Where the top is reached: a share of the run as a float in (0, 1], or a number of steps
            as an int.
        begin: Where the rise begins, in the same unit; the weight is 0 before it.

    Raises:
        ConfigurationError: For other values, or a mixture of units.
    """

    weight: float = 1.0
    shape: Shape = "sigmoid"
    end: float | int = 0.4
    begin: float | int = 0

    def __post_init__(self) -> None:
        if not is_number(self.weight, least=0):
            raise ConfigurationError(
                f"Ramp(weight={self.weight}) is not a weight; give a finite number of at least 0."
            )
        if self.shape not in SHAPES:
            raise ConfigurationError(
                f"Ramp(shape={self.shape!r}) is not one of {', '.join(SHAPES)}; choose one of "
                "these."
            )
        for name, value in (("begin", self.begin), ("end", self.end)):
            if not is_number(value):
                raise ConfigurationError(
                    f"Ramp({name}={value!r}) is not a number; give a share of the run as a float, "
                    "or a number of steps as an int."
                )
        if isinstance(self.end, float) and not 0 < self.end <= 1:
            raise ConfigurationError(
                f"Ramp(end={self.end}) is not a share of a run; give a float in (0, 1], or a "
                "number of steps as an int."
            )
        if isinstance(self.end, int) and self.end < 1:
            raise ConfigurationError(
                f"Ramp(end={self.end}) is not a number of steps; give an int of at least 1, or a "
                "share of the run as a float."
            )
        if type(self.begin) is not type(self.end) and self.begin != 0:
            raise ConfigurationError(
                f"Ramp(begin={self.begin}, end={self.end}) mixes steps and shares; give two ints "
                "or two floats."
            )
        if not 0 <= self.begin < self.end:
            raise ConfigurationError(
                f"Ramp(begin={self.begin}, end={self.end}) does not begin before it ends; give "
                "0 ≤ begin < end."
            )

    def value(self, step: int, run: int) -> float:
        """Return the weight at ``step`` (0 for the first) of a run of ``run`` steps."""
        begin, end = self.steps(run)
        if step < begin:
            return 0.0
        return self.weight * ramp(self.shape, step - begin, end - begin)

    def steps(self, run: int) -> tuple[float, float]:
        """Return where the rise begins and ends, in steps of a run of ``run`` steps."""
        scale = run if isinstance(self.end, float) else 1
        return self.begin * scale, self.end * scale


class RampHook(Hook):
    """Sets the consistency weight of a problem before each of its steps. ::

        Engine(problems, config, dependencies, hooks=[RampHook("student", Ramp(weight=8.0))])

    A share of the run is one of ``train_iters``, the steps of a leaf problem.

    Args:
        problem: A :class:`~metaweight.consistency.SemiSupervisedProblem` or its name.
        ramp: How its weight rises.

    Raises:
        ConfigurationError: For arguments of another type.
    """

    def __init__(self, problem: str | Problem, ramp: Ramp) -> None:
        require_problem("RampHook", problem)
        if not isinstance(ramp, Ramp):
            raise ConfigurationError(
                f"RampHook received ramp={shown(ramp)}; give a Ramp, such as Ramp(weight=8.0)."
            )
        self.problem = problem
        self.ramp = ramp
        self._run = 1

    def run_start(self, engine: Engine) -> None:
        """Read the length of the run, and warn when the top is beyond it.

        Raises:
            ConfigurationError: When the engine has no such problem.
        """
        from .problems import SemiSupervisedProblem  # noqa: PLC0415 (a problem knows ramps)

        found = [p for p in engine.problems if self._sets(p)]
        if not found or not isinstance(found[0], SemiSupervisedProblem):
            name = self.problem if isinstance(self.problem, str) else self.problem.name
            known = [p.name for p in engine.problems if isinstance(p, SemiSupervisedProblem)]
            raise ConfigurationError(
                f"RampHook was given problem {name!r}, which is no SemiSupervisedProblem of the "
                f"engine; those are: {', '.join(known) or 'none'}."
            )
        self._run = engine.train_iters
        end = self.ramp.steps(self._run)[1]
        if end > self._run and self.ramp.shape != "constant":
            top = self.ramp.value(self._run, self._run) / (self.ramp.weight or 1.0)
            warnings.warn(
                f"The consistency weight of problem {found[0].name!r} is to rise over {end:.0f} "
                f"steps, but the run has {self._run}: it reaches {top:.2g} of its full value. Give "
                "Ramp(end=...) as a share of the run, such as 0.4.",
                stacklevel=2,
            )

    def before_step(self, engine: Engine, problem: Problem) -> None:
        """Set the weight."""
        if self._sets(problem):
            student: SemiSupervisedProblem = problem  # type: ignore[assignment]
            student.consistency_weight = self.ramp.value(problem.count - 1, self._run)

    def _sets(self, problem: Problem) -> bool:
        return problem is self.problem or problem.name == self.problem
