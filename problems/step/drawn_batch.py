"""A batch that a hypergradient method draws for itself."""

from __future__ import annotations

from random import Random
from typing import Any
from zlib import crc32

import torch

from ..base.errors import DataError
from ..data.batch_digest import batch_form
from ..data.batches import is_empty
from ..problem import Problem
from ..recording.recorded_steps import RecordedStep
from ..state.random_streams import RandomState, seeded_streams


def drawn_step(problem: Problem) -> RecordedStep:
    """Draw a batch that the problem does not train on, with random numbers of its own.

    Raises:
        DataError: When it has no samples.
    """
    batch = require_samples(problem, problem.get_batch())
    state = crc32(torch.get_rng_state().numpy().tobytes())
    seed = Random(f"{state} {problem.count} {len(problem.step_state.drawn)}").getrandbits(63)
    # The streams of the training stay where they are.
    with seeded_streams(problem.device, seed):
        return RecordedStep(batch, RandomState(problem.device))


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
