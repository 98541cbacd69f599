"""A batch that a hypergradient method draws for itself."""

from __future__ import annotations

from typing import Any

import torch

from ..base.errors import DataError
from ..data.batch_digest import batch_form
from ..data.batches import is_empty
from ..problem import Problem
from ..recording.trajectory import RecordedStep
from ..state.random_streams import RandomState


def drawn_step(problem: Problem) -> RecordedStep:
    """Draw a batch that the problem does not train on, with random numbers of its own.

    Raises:
        DataError: When it has no samples.
    """
    batch = require_samples(problem, problem.get_batch())
    random = RandomState(problem.device)
    # The next pass draws other numbers than this one.
    torch.rand((), device=problem.device)
    return RecordedStep(batch, random)


def require_samples(problem: Problem, batch: Any) -> Any:
    """Return a batch of the problem.

    Raises:
        DataError: When it has no samples.
    """
    if is_empty(batch):
        raise DataError(
            f"Problem {problem.name!r} received a batch without samples ({batch_form(batch)}) in "
            f"step {problem.count}, whose mean loss is not a number; leave it out in the loader, "
            "for instance with drop_last=True."
        )
    return batch
