"""The number of a batch in a fixed division of the data, for methods with a table of batches."""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from ..base.errors import ConfigurationError
from ..data.sharding import ShareSampler
from ..problem import Problem
from ..recording.recorded_steps import BatchNumber

LOADER = (
    "Give it one loader without shuffling (a list of batches, DataLoader(shuffle=False), "
    "TensorLoader(shuffle=False)), or one that says by an attribute batch_number which of its "
    "batches the last one was"
)


def batch_number(problem: Problem) -> BatchNumber | None:
    """Return the number of the batch that the problem drew last; ``None`` if it has none.

    A loader that gives the same batches in another order each epoch says it by an attribute
    ``batch_number``; for others it is the position in the epoch.
    """
    source = problem.step_state.source
    if source is None or len(source.loaders) != 1:
        return None
    reading = source.readings[0]
    own: int | None = getattr(source.loaders[0], "batch_number", None)
    return BatchNumber(reading.division, reading.delivered - 1 if own is None else own)


def require_batch_numbers(problem: Problem, method: str, instead: str) -> None:
    """Refuse a problem whose batches are not the same, with a number each, in every epoch.

    Args:
        problem: The problem.
        method: What keeps a table of batches, for messages.
        instead: What to do without such a loader.

    Raises:
        ConfigurationError: Saying why, and what to give instead.
    """
    reason = _why_not(problem)
    if reason is not None:
        raise ConfigurationError(
            f"{method} keeps a table with an entry for each batch, so that batches must be the "
            f"same in every epoch, but problem {problem.name!r} {reason}; or {instead}."
        )


def _why_not(problem: Problem) -> str | None:
    """Return why it has no numbers, and what to do about it."""
    source = problem.step_state.source
    if source is None or type(problem).get_batch is not Problem.get_batch:
        return f"draws its batches by a get_batch of its own. {LOADER}"
    if len(source.loaders) != 1:
        return f"has {len(source.loaders)} loaders. {LOADER}"
    if problem.config.gradient_accumulation != 1:
        number = problem.config.gradient_accumulation
        return (
            f"accumulates {number} micro-batches in a step. Give it whole batches, with "
            "Config(gradient_accumulation=1)"
        )
    if not _is_fixed(source.loaders[0]):
        kind = type(source.loaders[0]).__name__
        return f"has a loader of type {kind} that is not known to do so. {LOADER}"
    return None


def _is_fixed(loader: Any) -> bool:
    if isinstance(loader, (list, tuple)) or hasattr(type(loader), "batch_number"):
        return getattr(loader, "batch_number", 0) is not None
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return hasattr(loader, "batch_number")
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", None)
    sampler = sampler.sampler if isinstance(sampler, ShareSampler) else sampler
    return type(batches) in (BatchSampler, type(None)) and type(sampler) is SequentialSampler
