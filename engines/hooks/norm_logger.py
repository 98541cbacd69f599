"""Logging of the norms of gradients, parameters and updates during a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, Problem, StepResult
from metaweight.problems.base.settings import is_count
from metaweight.problems.base.shards import norm_over_shards, shards_of
from torch import Tensor

from ..distributed.processes import Processes
from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine


class NormLogger(Hook):
    """Logs norms of each problem every ``every`` of its optimizer steps, under ``norms/<name>``.

    ``gradient``: Euclidean norm of the gradient, hypergradients included, unscaled, before
    clipping. ``hypergradient_<lower>``: norm of its hypergradient term through a lower problem, or
    ``hypergradient_<lower> -> <lower>`` along a path of several. ``parameters``: norm of the
    trainable parameters before the update. ``update_ratio``: norm of their change over that.
    Skipped steps are not logged, nor are those that the loss scaler refuses.

    Steps that are logged wait for the device, and copy the parameters once. In a program of several
    processes norms are those of means over all processes, for which hypergradient terms are
    averaged once more, and the first process logs.

    Args:
        every: Optimizer steps of a problem between two records.

    Raises:
        ConfigurationError: For a number below 1.
    """

    optional = True
    reads_hypergradients = True
    changes_gradients = False

    def __init__(self, every: int = 100) -> None:
        if not is_count(every, least=1):
            raise ConfigurationError(
                f"NormLogger(every={every!r}) must be an integer of at least 1 optimizer step."
            )
        self.every = every
        self._terms: dict[str, dict[str, list[Tensor]]] = {}
        self._found: dict[str, dict[str, Tensor]] = {}
        self._before: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def before_step(self, engine: Engine, problem: Problem) -> None:
        """Clear the hypergradient terms at the start of each accumulation."""
        if (problem.count - 1) % problem.config.gradient_accumulation == 0:
            for noted in (self._terms, self._found, self._before):
                noted.pop(problem.name, None)

    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        """Measure gradients and parameters, on steps that are logged."""
        if not self._is_due(problem):
            return
        terms = self._terms.setdefault(problem.name, {})
        for path, values in _averaged(
            engine.processes, problem.step_state.hypergradient_terms
        ).items():
            so_far = terms.get(path)
            terms[path] = (
                values if so_far is None else [a + b for a, b in zip(so_far, values, strict=True)]
            )
        if problem.count % problem.config.gradient_accumulation == 0:
            self._measure(problem, terms)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Log the norms, with that of the change of the parameters."""
        found = self._found.pop(problem.name, None)
        before = self._before.pop(problem.name, [])
        if found is None or result.skipped or result.overflow:
            return
        changes = [(p.detach() - old) for p, old in before]
        found["update_ratio"] = _norm(changes) / found["parameters"]
        engine.logger.log(found, tag=f"norms/{problem.name}", step=problem.count)

    def state_dict(self) -> dict[str, Any]:
        """Return the hypergradient terms of an incomplete accumulation."""
        return {"terms": self._terms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._terms = {name: dict(terms) for name, terms in state["terms"].items()}

    def _is_due(self, problem: Problem) -> bool:
        number = -(-problem.count // problem.config.gradient_accumulation)
        return number % self.every == 0

    @torch.no_grad()
    def _measure(self, problem: Problem, terms: dict[str, list[Tensor]]) -> None:
        parameters = list(problem.trainable_parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        scale: Any = 1.0 if problem.scaler is None else problem.scaler._scale
        found = {"gradient": _norm(gradients) / scale}
        found |= {f"hypergradient_{path}": _norm(v) / scale for path, v in terms.items()}
        found["parameters"] = _norm([p.detach() for p in parameters])
        self._found[problem.name] = found
        self._before[problem.name] = [(p, p.detach().clone()) for p in parameters]
        self._terms.pop(problem.name, None)


def _averaged(
    processes: Processes, terms: Mapping[str, Sequence[Tensor]]
) -> dict[str, list[Tensor]]:
    means = iter(processes.mean([t for values in terms.values() for t in values]))
    return {path: [next(means) for _ in values] for path, values in terms.items()}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all values together, a 0-dim tensor."""
    values = [t.coalesce()._values() if t.is_sparse else t for t in tensors]
    if not values:
        return torch.zeros((), device="cpu")
    norms = torch._foreach_norm(shards_of(values))
    together = torch.stack([n.to(norms[0].device) for n in norms])
    return norm_over_shards(torch.linalg.vector_norm(together), values[0])
