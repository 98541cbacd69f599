"""Batches of tensors that already live on the device, in a reproducible and resumable order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metaweight._generator import generator_of
from metaweight.problems import DataError
from metaweight.problems.base.ordinary_tensors import without_graph
from metaweight.problems.base.settings import is_count, require_function
from metaweight.problems.data.validation import checked_device

from ._saved_state import load_transform, require_same, with_transform
from .labelled import LabelledTensors


class Gathered(Protocol):
    """Samples in memory, of any form, of which a batch is gathered by positions."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Any:
        """Return the samples on a device."""

    def subset(self, positions: Tensor) -> Any:
        """Return the samples at positions."""

    def gather(self, positions: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs and the targets at positions."""


@dataclass
class _Epoch:
    order: Tensor
    drawn_from: Tensor
    delivered: int


class TensorLoader:
    """Iterable of batches; every ``iter`` starts an epoch with a fresh seeded order.

    Each batch is gathered by one ``index_select``. Without replacement, ``batch_size`` is capped at
    the number of samples, so that small data come as one whole batch.

    In a program of ``world`` processes ``batch_size`` is that of each process: all draw the same
    order, and together their batches are those of one process with ``world * batch_size``
    (:meth:`take_share`).

    Args:
        data: Samples to read; or ``(inputs, labels)``, of tensors, arrays, tables or lists, or a
            ``torch.utils.data.TensorDataset`` of the two, as :class:`LabelledTensors` reads them;
            or an object with its ``len``, ``device``, ``to``, ``subset`` and ``gather``.
        batch_size: Samples per batch, at least 1.
        shuffle: Whether to permute the samples in each epoch.
        drop_last: Whether to leave out a last batch smaller than the others.
        transform: Applied to the inputs of each batch; its state is saved with the loader's if it
            has one.
        seed: Seed of the order; global random state is neither read nor changed.
        generator: Source of the order instead of ``seed``, on any device.
        with_indices: Whether batches also hold the positions of their samples in ``data``.
        with_replacement: Draw every batch of ``batch_size`` independently and uniformly with
            replacement; an epoch has as many batches as without, and at least one.
        device: Where to hold data and give batches; ``None`` leaves the data where they are.

    Raises:
        ValueError: When there are no samples, ``batch_size`` is below 1, or replacement is asked
            for without ``shuffle``.
    """

    def __init__(
        self,
        data: LabelledTensors | Gathered | TensorDataset | tuple[Any, Any],
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        with_indices: bool = False,
        with_replacement: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        data = _labelled(data)
        require_function("TensorLoader", "transform", transform)
        if not len(data):
            raise ValueError("TensorLoader was given data without samples; give at least one.")
        if not is_count(batch_size, least=1):
            raise ValueError(f"batch_size={batch_size} was given; use at least 1.")
        if with_replacement and not shuffle:
            raise ValueError(
                "with_replacement=True was given with shuffle=False, but draws with replacement "
                "have no fixed order; leave out one of the two."
            )
        self.data: Gathered = (
            data if device is None else data.to(checked_device("TensorLoader", device))
        )
        self._asked = batch_size
        self._rank, self._world = 0, 1
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.generator = generator_of("TensorLoader", seed, generator)
        self.with_indices = with_indices
        self.with_replacement = with_replacement
        self.batch_size = self._capped()
        self._epoch: _Epoch | None = None
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        full, remainder = divmod(len(self.data), self.batch_size * self._world)
        return max(1, full + (1 if remainder and not self.drop_last else 0))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Start a new epoch, or the remainder of one just restored by :meth:`load_state_dict`.

        Yields:
            ``(inputs, labels)``, or ``(inputs, labels, positions)`` where ``with_indices`` is set.
        """
        epoch = self._epoch if self._resumed else None
        self._resumed = False
        if epoch is None:
            state = self.generator.get_state()
            epoch = self._epoch = _Epoch(self._draw_order(), state, 0)
        return self._batches(epoch)

    @without_graph
    def _draw_order(self) -> Tensor:
        size, source = len(self.data), self.generator.device
        if self.with_replacement:
            shape = (len(self) * self.batch_size * self._world,)
            order = torch.randint(size, shape, generator=self.generator, device=source)
        elif self.shuffle:
            order = torch.randperm(size, generator=self.generator, device=source)
        else:
            order = torch.arange(size, device=source)
        # Only copies from the host may be non-blocking.
        return order.to(self.data.device, non_blocking=source.type == "cpu")

    def _batches(self, epoch: _Epoch) -> Iterator[tuple[Tensor, ...]]:
        size = self.batch_size * self._world
        while epoch.delivered < len(self):
            start = epoch.delivered * size
            epoch.delivered += 1
            yield self._batch(self._share(epoch.order[start : start + size]))
        if self._epoch is epoch:
            self._epoch = None

    @property
    def batch_number(self) -> int | None:
        """The number of the last batch among those of an epoch; ``None`` where they are shuffled or
        none was given."""
        if self.shuffle:
            return None
        return 0 if self._epoch is None else self._epoch.delivered - 1

    def take_share(self, rank: int, world: int) -> None:
        """Read only every ``world``-th sample of the order, starting at ``rank``.

        This holds from the next epoch on. Where the last samples of an epoch cannot be shared out
        equally, some are repeated. A transform with a ``take_share`` draws differently in each
        process.
        """
        if (rank, world) == (self._rank, self._world):
            return
        self._rank, self._world = rank, world
        self.batch_size = self._capped()
        self._epoch, self._resumed = None, False
        transform: Any = self.transform
        if hasattr(transform, "take_share"):
            transform.take_share(rank, world)

    def _capped(self) -> int:
        if self.with_replacement:
            return self._asked
        return min(self._asked, -(-len(self.data) // self._world))

    def _share(self, positions: Tensor) -> Tensor:
        missing = -len(positions) % self._world
        if missing:
            repeats = -(-missing // len(positions))
            positions = torch.cat([positions, positions.repeat(repeats)[:missing]])
        return positions[self._rank :: self._world]

    def _batch(self, positions: Tensor) -> tuple[Tensor, ...]:
        inputs, labels = self.data.gather(positions)
        if self.transform is not None:
            inputs = self.transform(inputs)
        return (inputs, labels, positions) if self.with_indices else (inputs, labels)

    def state_dict(self) -> dict[str, Any]:
        """Save the generator, the position in the latest epoch and the state of the transform.

        A state saved after the last batch of an epoch, but before the iteration stopped, restores
        an epoch without batches left, as the original one.
        """
        epoch = self._epoch
        return {
            "layout": self._layout(),
            "generator": self.generator.get_state(),
            "epoch_drawn_from": None if epoch is None else epoch.drawn_from,
            "delivered": 0 if epoch is None else epoch.delivered,
            **with_transform(self.transform),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: the next ``iter`` gives the rest of its epoch.

        The order is drawn again rather than stored, so the generator has to be on the same type of
        device as when it was saved.

        Raises:
            ValueError: When the loader that saved ``state`` was built differently.
        """
        require_same(state, self._layout(), self.transform)
        self._epoch, self._resumed = None, False
        if state["epoch_drawn_from"] is not None:
            drawn_from = state["epoch_drawn_from"].cpu()
            self.generator.set_state(drawn_from)
            self._epoch = _Epoch(self._draw_order(), drawn_from, int(state["delivered"]))
            self._resumed = True
        self.generator.set_state(state["generator"].cpu())
        load_transform(state, self.transform)

    def _layout(self) -> dict[str, int | bool]:
        return {
            "samples": len(self.data),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "with_replacement": self.with_replacement,
            **({"processes": self._world} if self._world > 1 else {}),
        }


def _labelled(data: Any) -> Gathered:
    if hasattr(data, "gather") and not isinstance(data, Tensor):
        gathered: Gathered = data
        return gathered
    parts = data.tensors if isinstance(data, TensorDataset) else data
    if not isinstance(parts, tuple) or len(parts) != 2:
        number = f" of {len(parts)} parts" if isinstance(parts, tuple) else ""
        raise DataError(
            f"TensorLoader received data of type {type(data).__name__}{number}; give "
            "LabelledTensors, a tuple (inputs, labels) or a TensorDataset of the two, or use "
            "SampleLoader or torch's DataLoader for other data sets."
        )
    return LabelledTensors(*parts)
