"""Gradients with less variance, by a table of what each batch gave last (SAGA).

With the gradient ``g_i`` of batch ``i``, one of a fixed division of the data, ::

    g  =  g_i - table_i + mean(table),        table_i  ←  g_i

``g`` has the mean over batches that ``g_i`` has. Near a solution, where the table changes little,
it has no variance left, so that a constant step size converges. A batch that has no entry yet is
followed as it is.

Sources: Defazio, Bach, Lacoste-Julien, "SAGA: a fast incremental gradient method with support for
non-strongly convex composite objectives", NeurIPS 2014 (arXiv:1407.0202); of the gradients of a
bilevel program: Dagréou, Ablin, Vaiter, Moreau, "A framework for bilevel optimization that enables
stochastic and global variance reduction algorithms", NeurIPS 2022 (arXiv:2201.13409).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, GraphError, Problem, StepResult
from metaweight.problems.base import vectors
from metaweight.problems.base.shards import shards_of
from metaweight.problems.data.sharding import Shareable
from metaweight.problems.hypergradients.saga import Table, corrected, table_for
from metaweight.problems.recording.recorded_steps import BatchNumber
from metaweight.problems.step.batch_numbers import batch_number, require_batch_numbers
from torch import Tensor
from torch.utils.data import DataLoader

from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine


class VarianceReduction(Hook):
    """Corrects gradients by a table with an entry for each batch: ``g_i - table_i + mean(table)``.

    With :class:`~metaweight.problems.SABA` it makes the published algorithm of that name, which
    converges at constant step sizes: ``SABA`` corrects its own quantities, this hook the gradients
    of the lower and the upper problem.

    Each problem has one loader of the same batches in every epoch: not shuffled, or with an
    attribute ``batch_number`` that says which of them the last one was. A loader that takes its
    place during a run starts a new table, as do other parameters to be trained. A step that is
    skipped leaves the table as it was. Gradients are corrected before they are clipped, and the
    table holds them so. In a program of several processes the gradient is the mean
    over all, which have to be at the same number.

    Memory: a gradient for each batch, of single precision at least, also in checkpoints.

    Args:
        problems: Names of the problems whose gradients it corrects; all when left out.

    Raises:
        ConfigurationError: For anything but names. When a run starts, or a loader is replaced: for
            loaders that do not say which batch they give, for problems that accumulate
            micro-batches, and for those whose steps ``EngineConfig(roll_back=True)`` takes again;
            in a step, for processes that are at different batches.
        GraphError: When a run starts, for a name that no problem of the engine has.
    """

    def __init__(self, problems: Sequence[str] | None = None) -> None:
        names = problems is None or isinstance(problems, (list, tuple))
        if not names or not all(isinstance(name, str) for name in problems or ()):
            raise ConfigurationError(
                f"VarianceReduction(problems={problems!r}) must be a list of names of problems, "
                "such as ['lower'], or left out for all."
            )
        self.problems = None if problems is None else tuple(problems)
        self._tables: dict[str, Table] = {}
        # Of the step under way, which may yet be skipped.
        self._proposed: dict[str, Table] = {}
        # The parameters that the places of a table stand for.
        self._parameters: dict[str, list[Tensor]] = {}

    def changes_gradients_of(self, problem: Problem) -> bool:
        """Return whether it corrects those of a problem."""
        return self.problems is None or problem.name in self.problems

    def run_start(self, engine: Engine) -> None:
        """Refuse problems whose gradients cannot be corrected.

        Raises:
            GraphError: When the engine has no problem of a name.
            ConfigurationError: Naming the problem and what to change.
        """
        known = [problem.name for problem in engine.problems]
        for name in self.problems or ():
            if name not in known:
                raise GraphError(
                    f"VarianceReduction({list(self.problems or ())}) names a problem, {name!r}, "
                    f"that is not among those of the engine ({', '.join(known)}); give some of "
                    "these."
                )
        for problem in filter(self.changes_gradients_of, engine.problems):
            _require_numbers(problem)
            if engine.config.roll_back and problem.parents:
                raise ConfigurationError(
                    f"EngineConfig(roll_back=True) takes the last step of problem "
                    f"{problem.name!r} again, by the gradient of its batch as it is, which "
                    "VarianceReduction cannot correct. Leave roll_back out, or name other problems "
                    "in VarianceReduction(problems=...)."
                )

    @torch.no_grad()
    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        """Correct the gradient."""
        if not self.changes_gradients_of(problem):
            return
        batch, parameters = batch_number(problem), list(problem.trainable_parameters())
        table = self._table_of(problem.name, batch, parameters)
        if table is None:
            # A loader may have been replaced by one that shuffles.
            _require_numbers(problem)
        _require_same_number(engine, problem, batch)
        before = set(() if table is None else table["places"])
        places = [i for i, p in enumerate(parameters) if p.grad is not None or i in before]
        gradients = [_dense_gradient(parameters[i]) for i in places]
        scale = None if problem.scaler is None else problem.scaler._scale
        new = [g.to(vectors.accumulation_dtype(g), copy=True) for g in gradients]
        new = new if scale is None else vectors.divide(new, scale)
        table = table_for(batch, table and _with_places(table, places, new), new)
        values, table = corrected(table, batch, new)
        values = values if scale is None else vectors.scale(values, scale)
        vectors.put(shards_of(values), shards_of(gradients))
        self._proposed[problem.name] = {**table, "places": places}
        self._parameters[problem.name] = parameters

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Keep the table of a step that was taken."""
        del engine
        table = self._proposed.pop(problem.name, None)
        if table is not None and not (result.skipped or result.overflow):
            self._tables[problem.name] = table

    def state_dict(self) -> dict[str, Any]:
        """Return the tables."""
        return {"tables": dict(self._tables)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._tables = dict(state["tables"])
        self._proposed.clear()
        self._parameters.clear()

    def _table_of(
        self, name: str, batch: BatchNumber | None, parameters: list[Tensor]
    ) -> Table | None:
        """Return the table of a problem, unless it is one of other batches or parameters."""
        table, owners = self._tables.get(name), self._parameters.get(name)
        if table is None or batch is None or table["division"] != batch.division:
            return None
        if owners is None:
            return _moved(table, parameters)
        same = len(owners) == len(parameters) and all(map(is_, owners, parameters))
        return table if same else None


def _require_numbers(problem: Problem) -> None:
    instead = "name other problems in VarianceReduction(problems=...)"
    require_batch_numbers(problem, "VarianceReduction", instead)


def _require_same_number(engine: Engine, problem: Problem, batch: BatchNumber | None) -> None:
    """Refuse processes that are at different batches, where each has loaders of its own."""
    processes = engine.processes
    if processes.world == 1 or batch is None:
        return
    if isinstance(problem.source.loaders[0], (Shareable, DataLoader)):
        return
    most, least = processes.largest(batch.number), -processes.largest(-batch.number)
    if most != least:
        raise ConfigurationError(
            "VarianceReduction keeps a table of gradients averaged over processes, with an entry "
            f"for each batch, but problem {problem.name!r} is at batch {least} in one process and "
            f"at batch {most} in another; give each process as many batches, in the same order."
        )


def _dense_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient, zero where there is none, as a tensor to write to."""
    gradient = parameter.grad
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    elif gradient.layout is not parameter.layout:
        gradient = gradient.to_dense()
    parameter.grad = gradient
    return gradient


def _with_places(table: Table, places: list[int], like: Sequence[Tensor]) -> Table:
    """Return the table with zeros for parameters that had no gradient in any batch before."""
    if table["places"] == places:
        return table

    def filled(vector: Sequence[Tensor]) -> list[Tensor]:
        known = dict(zip(table["places"], vector, strict=True))
        return [
            known[i] if i in known else torch.zeros_like(t)
            for i, t in zip(places, like, strict=True)
        ]

    entries = {key: filled(entry) for key, entry in table["entries"].items()}
    return {**table, "places": places, "entries": entries, "mean": filled(table["mean"])}


def _moved(table: Table, parameters: Sequence[Tensor]) -> Table | None:
    """Return a loaded table on the devices of the parameters, if there are as many."""
    places = table["places"]
    if places and places[-1] >= len(parameters):
        return None

    def moved(vector: Sequence[Tensor]) -> list[Tensor]:
        return [t.to(parameters[i].device) for i, t in zip(places, vector, strict=True)]

    entries = {key: moved(entry) for key, entry in table["entries"].items()}
    return {**table, "entries": entries, "mean": moved(table["mean"])}
