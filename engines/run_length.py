"""The number of steps of a run."""

from __future__ import annotations

from collections.abc import Iterable

from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.data.loader_parts import length_of

from .distributed.processes import Processes
from .program.config import EngineConfig


def steps_of_run(config: EngineConfig, leaves: Iterable[Problem], processes: Processes) -> int:
    """Return the steps that leaf problems take: ``train_iters``, or the batches of ``epochs``.

    Raises:
        ConfigurationError: For epochs where a leaf problem has no loader, or one without a length,
            and where those of several leaf problems are not of one length.
    """
    if config.epochs is None:
        return int(config.train_iters)
    lengths = {problem.name: _batches(problem, config.epochs) for problem in leaves}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ConfigurationError(
            f"EngineConfig(epochs={config.epochs}) means passes over the loader of a leaf problem, "
            f"but those of the program have different numbers of batches ({found}); give "
            "train_iters."
        )
    length = next(iter(lengths.values()))
    return config.epochs * processes.from_first(lambda: length)


def _batches(problem: Problem, epochs: int) -> int:
    loaders = problem.train_data_loader or [None]
    length = length_of(loaders[0])
    if length is None:
        kind = "none" if loaders[0] is None else f"a {type(loaders[0]).__name__} without a length"
        raise ConfigurationError(
            f"EngineConfig(epochs={epochs}) means passes over the loader of the leaf problem "
            f"{problem.name!r}, which has {kind}; give train_iters, or a loader with len()."
        )
    return length
