"""What is a problem's own where networks of problems contain one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from .buffers import BufferSlot, buffer_slots

if TYPE_CHECKING:
    from ..problem import Problem


class Owned(NamedTuple):
    """What a problem's steps change.

    Attributes:
        parameters: Parameters of its network.
        modules: Submodules.
        slots: Where their buffers live.
    """

    parameters: list[Tensor]
    modules: list[nn.Module]
    slots: list[BufferSlot]

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters and the buffers that there are."""
        buffers = [owner._buffers[name] for owner, name in self.slots]
        return [*self.parameters, *(b for b in buffers if b is not None)]


def owned(problem: Problem) -> Owned:
    """Return what of its network is a problem's own.

    That is what the problem trains, and what no other problem trains or has in a network that is
    within this one and holds nothing that this problem trains: as architecture parameters within
    the network of weights, or one level's network within that of the next.
    """
    trained = _trained(problem)
    foreign: set[Tensor] = set()
    inner: set[nn.Module] = set()
    modules = list(problem.module.modules())
    for other in problem.position.peers.values():
        foreign |= _trained(other)
        within = other.module is not problem.module and other.module in modules
        if within and trained.isdisjoint(other.module.parameters()):
            foreign.update(other.module.parameters())
            inner.update(other.module.modules())
    parameters = [p for p in problem.module.parameters() if p in trained or p not in foreign]
    slots = [slot for slot in buffer_slots(problem.module) if slot[0] not in inner]
    return Owned(parameters, [module for module in modules if module not in inner], slots)


def _trained(problem: Problem) -> set[Tensor]:
    """Return what a problem trains, also while it is frozen."""
    groups = [] if problem.optimizer is None else problem.optimizer.param_groups
    return {*(p for group in groups for p in group["params"]), *problem.trainable_parameters()}
