"""Sample losses, and what else sample weights are computed from."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import forward_ad

from ..base.nested import map_tensors
from ..state.random_streams import RandomState


class Samples(NamedTuple):
    """What the sample weights of a batch are a function of.

    Attributes:
        losses: The sample losses, shape (B,).
        features: What ``sample_losses`` returned beside them, tensors without a graph, or ``None``.
        random: The random streams after the losses, which weights draw from; ``None`` where they
            draw from the present ones.
    """

    losses: Tensor
    features: Any = None
    random: RandomState | None = None

    def detached(self) -> Samples:
        """Return the same without the graph of the losses."""
        return self._replace(losses=self.losses.detach())

    def parts(self) -> tuple[Samples, Tensor | None]:
        """Split dual numbers: return values without a graph, and the tangent of the losses."""
        dual = forward_ad.unpack_dual(self.losses)  # type: ignore[no-untyped-call]
        features = map_tensors(_value, self.features)
        tangent = None if dual.tangent is None else dual.tangent.detach()
        return self._replace(losses=dual.primal.detach(), features=features), tangent


def midway(ahead: Samples, behind: Samples) -> Samples:
    """Return the means of losses and floating-point features, and the rest as ``ahead`` has it."""
    return Samples(
        (ahead.losses + behind.losses) / 2,
        map_tensors(_mean, ahead.features, behind.features),
        ahead.random,
    )


def _mean(a: Tensor, b: Any) -> Tensor:
    return (a + b) / 2 if a.is_floating_point() or a.is_complex() else a


def _value(tensor: Tensor) -> Tensor:
    primal: Tensor = forward_ad.unpack_dual(tensor).primal  # type: ignore[no-untyped-call]
    return primal.detach()
