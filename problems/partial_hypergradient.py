"""Problems that hypergradients go through a part of only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .kernels.activation_reuse import ReusableActivations
from .kernels.checkpointing import uncheckpointed
from .kernels.torch_internals import is_compiled
from .problem import Problem


def chooses_by_method(problem: Problem) -> bool:
    """Whether a method of the user's chooses the parameters hypergradients go through."""
    name = "meta_trainable_parameters"
    return getattr(type(problem), name) is not getattr(Problem, name) or name in vars(problem)


def may_be_partial(problem: Problem) -> bool:
    """Whether something chooses the parameters hypergradients go through."""
    return problem.config.hypergradient_parameters is not None or chooses_by_method(problem)


def is_partial(problem: Problem) -> bool:
    """Whether hypergradients go through a part of the problem's trainable parameters only."""
    if not may_be_partial(problem):
        return False
    return len(list(problem.meta_trainable_parameters())) < len(
        list(problem.trainable_parameters())
    )


def reusable_activations(
    problem: Problem, batch: Any, also: Iterable[Tensor] = ()
) -> ReusableActivations | None:
    """Return what notes a pass over ``batch``, to repeat it with chosen parameters displaced.

    Nothing where all parameters are displaced, and of compiled passes, which cannot be repeated in
    part.

    Args:
        problem: The lower problem.
        batch: Its micro-batch.
        also: What else changes, or is differentiated by.
    """
    if not is_partial(problem) or is_compiled(problem.module):
        return None
    modules = [problem.module, *[peer.module for peer in problem.position.peers.values()]]
    changing = [*problem.meta_trainable_parameters(), *also]
    return ReusableActivations(changing, modules, batch, problem.device)


@contextmanager
def others_frozen(problem: Problem) -> Iterator[None]:
    """Inside, of the problems below, what hypergradients do not go through requires no gradient.

    A backward pass that would stop above it needs no graph below.
    """
    lowers = {path[1] for path in problem.position.paths}
    partly = [lower for lower in lowers if is_partial(lower)]
    if not partly:
        yield
        return
    kept = {p for lower in lowers for p in lower.meta_trainable_parameters()}
    kept.update(problem.trainable_parameters())
    frozen = [p for lower in partly for p in lower.trainable_parameters() if p not in kept]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        # A backward pass comes when the parameters require a gradient again.
        with uncheckpointed():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
