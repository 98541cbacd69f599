"""Check which quantities of a step are finite, with one synchronisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from ..base.shards import shard_of
from ..problem import Problem


@dataclass(frozen=True)
class Finiteness:
    """Which quantities of a step are finite.

    Attributes:
        loss: Whether the loss is finite.
        gradient: Whether the gradient with its hypergradients is.
        culprits: Hypergradient paths whose terms are not.
        overflow: Whether only the gradient is not finite, and the loss scale may be the cause;
            the loss scaler will reduce it.
        own: Whether this process's gradient was finite before averaging over processes.
    """

    loss: bool
    gradient: bool
    culprits: tuple[str, ...] = ()
    overflow: bool = False
    own: bool = True

    @property
    def whole(self) -> bool:
        """Whether everything is finite."""
        return self.loss and self.gradient


def finiteness(problem: Problem, loss: Tensor, own: Tensor | None = None) -> Finiteness:
    """Check a loss, the gradient in ``.grad`` and the terms of the hypergradient.

    With a loss scale above 1, a gradient that is not finite counts as an overflow. Synchronises
    once.

    Args:
        problem: The problem.
        loss: Its loss.
        own: Result of :func:`finite_gradient` before averaging; ``None`` if not averaged.
    """
    terms = problem.step_state.hypergradient_terms
    gradient = finite_gradient(problem, loss)
    flags = [loss.isfinite().all(), gradient, gradient if own is None else own]
    flags += [_finite(part, loss) for part in terms.values()]
    scale = None if problem.scaler is None else problem.scaler._scale
    if scale is not None:
        flags.append((scale > 1).to(loss.device).reshape(()))
    of_loss, of_gradient, of_own, *rest = torch.stack(flags).tolist()
    return Finiteness(
        loss=of_loss,
        gradient=of_gradient,
        culprits=tuple(compress(terms, [not fine for fine in rest])),
        overflow=of_loss and not of_gradient and scale is not None and rest[-1],
        own=of_own,
    )


def finite_gradient(problem: Problem, like: Tensor) -> Tensor:
    """Return whether the gradient in ``.grad`` is finite, as a tensor on the device of ``like``."""
    gradient = [p.grad for p in problem.trainable_parameters() if p.grad is not None]
    return _finite(gradient, like)


def _finite(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return whether all values are finite, as a tensor on the device of ``like``."""
    values = [t._values() if t.is_sparse else shard_of(t) for t in tensors]
    values = [t.detach() for t in values if t.numel()]
    if not values:
        return torch.ones((), dtype=torch.bool, device=like.device)
    # The largest magnitude, unlike a sum of squares, does not overflow where values are finite.
    largest = torch._foreach_norm(values, torch.inf)
    return torch.stack([n.to(like.device) for n in largest]).isfinite().all()
