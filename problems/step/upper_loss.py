"""The value of the upper loss, for zeroth-order methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.displacement import Displacement
from ..problem import Problem
from ..recording.recorded_steps import BatchVersions
from ..state.buffers import preserved_buffers
from ..state.random_streams import RandomState, preserved_streams
from .plan import plan_of


class UpperLoss:
    """Evaluates the upper loss any number of times without side effects.

    Create it just before training evaluates the loss, so that both draw the same random numbers.

    Args:
        problem: The upper problem.
        evaluate: Returns its loss on its batch.
        batch: The batch.
    """

    def __init__(self, problem: Problem, evaluate: Callable[[], Tensor], batch: Any) -> None:
        self._problem = problem
        self._evaluate = evaluate
        self._versions = BatchVersions(batch)
        self._random = RandomState(problem.device)

    def __call__(self) -> Tensor:
        """Return the loss at all problems' present parameters."""
        problem = self._problem
        self._versions.require_unwritten(problem.name)
        # The recording of the upper problem's own step keeps the first evaluation only.
        trajectory = problem.step_state.trajectory
        under_way = trajectory._open
        trajectory._open = None
        try:
            with (
                preserved_streams(problem.device),
                preserved_buffers(plan_of(problem).surroundings.buffers),
            ):
                self._random.restore()
                torch.clear_autocast_cache()
                loss = self._evaluate().detach()
        finally:
            trajectory._open = under_way
        wide = loss if loss.is_floating_point() and loss.dtype.itemsize >= 4 else loss.float()
        return problem.step_state.processes.mean([wide])[0]

    def holding(self, parameters: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Return a function that evaluates the loss at the present values of ``parameters``."""
        places = [p.data for p in parameters]
        home = [place.clone() for place in places]

        def value() -> Tensor:
            with Displacement(parameters):
                torch._foreach_copy_(places, home)
                return self()

        return value
