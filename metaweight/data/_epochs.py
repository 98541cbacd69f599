"""Random orders of samples, one per epoch, that can be saved and drawn again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaweight.problems.base.ordinary_tensors import without_graph


@dataclass
class Epoch:
    """One pass over the samples.

    Attributes:
        order: Positions of the samples, shape (N,), int64, on the CPU.
        key: Seed of all random numbers in this epoch other than the order, in [0, 2⁶³ - 1).
        drawn_from: State of the generator that order and key were drawn from.
        delivered: Number of batches delivered.
    """

    order: Tensor
    key: int
    drawn_from: Tensor
    delivered: int


class Epochs:
    """Starts epochs with new orders and keeps the latest that has not ended.

    Args:
        size: Number of samples.
        shuffle: Whether orders are random permutations.
        generator: Source of orders and keys, on any device.
    """

    def __init__(self, size: int, shuffle: bool, generator: torch.Generator) -> None:
        self.generator = generator
        self._size = size
        self._shuffle = shuffle
        self._latest: Epoch | None = None
        self._restored = False

    def begin(self) -> Epoch:
        """Return a new epoch, or the one just restored by :meth:`load_state_dict`."""
        if not self._restored or self._latest is None:
            self._latest = self._draw()
        self._restored = False
        return self._latest

    @property
    def delivered(self) -> int:
        """Number of batches of the latest epoch that were delivered; 1 if there is none."""
        return 1 if self._latest is None else self._latest.delivered

    def end(self, epoch: Epoch) -> None:
        """Note that all batches of ``epoch`` were delivered."""
        if self._latest is epoch:
            self._latest = None

    def state_dict(self) -> dict[str, Any]:
        """Save the generator and the position in the latest epoch."""
        epoch = self._latest
        return {
            "generator": self.generator.get_state(),
            "epoch_drawn_from": None if epoch is None else epoch.drawn_from,
            "delivered": 0 if epoch is None else epoch.delivered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        The order is drawn again rather than stored, so the generator has to be on the same type of
        device as when it was saved.
        """
        self._latest, self._restored = None, False
        if state["epoch_drawn_from"] is not None:
            self.generator.set_state(state["epoch_drawn_from"].cpu())
            self._latest = self._draw()
            self._latest.delivered = int(state["delivered"])
            self._restored = True
        self.generator.set_state(state["generator"].cpu())

    @without_graph
    def _draw(self) -> Epoch:
        drawn_from, source = self.generator.get_state(), self.generator.device
        if self._shuffle:
            order = torch.randperm(self._size, generator=self.generator, device=source).cpu()
        else:
            order = torch.arange(self._size, device="cpu")
        key = torch.randint(2**63 - 1, (), generator=self.generator, device=source)
        return Epoch(order, int(key), drawn_from, 0)
