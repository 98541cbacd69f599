"""A reproducible and resumable loader that reads samples one by one, in worker processes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from metaweight._batch import with_indices as with_positions
from metaweight._generator import generator_of
from metaweight.problems.base.settings import is_count, require_function
from metaweight.problems.data.batches import move_batch
from metaweight.problems.data.validation import checked_device
from metaweight.problems.state.random_streams import preserved_streams

from ._epochs import Epoch, Epochs
from ._sample_reader import Requests, SampleReader, as_it_is, keep_what_is_inherited
from ._saved_state import load_transform, require_same, with_transform

_HOST = torch.device("cpu")


class SampleLoader:
    """Iterable of batches of a map-style dataset; every ``iter`` starts an epoch in a fresh order.

    For data that do not fit in memory or are decoded and augmented sample by sample; where they are
    tensors, :class:`TensorLoader` is faster. torch's ``DataLoader`` does the reading. Added:

    - Batches depend on the seed alone, not on ``num_workers``. While sample i is read, torch's CPU
      stream, NumPy's and Python's global ones are seeded by the epoch and the place of the sample
      in it. Generators that the dataset holds or makes from the system's entropy are not covered.
    - The random state of the process that iterates is neither read nor changed.
    - :meth:`state_dict` counts the batches that were delivered, not those that workers have read
      ahead.

    ``batch_size`` is capped at the number of samples. Workers start with the first batch, keep the
    copy of the dataset they start with, and wait for the next epoch when one ends.

    In a program of ``world`` processes ``batch_size`` is that of each process: all draw the same
    order, and together their batches are those of one process with ``world * batch_size``
    (:meth:`take_share`).

    Args:
        dataset: Samples by position: ``len(dataset)`` and ``dataset[i]``.
        batch_size: Samples per batch, at least 1.
        shuffle: Whether to permute the samples in each epoch.
        drop_last: Whether to leave out a last batch smaller than the others.
        num_workers: Processes that read; 0 reads in the process that iterates.
        prefetch_factor: Batches that each worker reads ahead, at least 1.
        collate_fn: Makes a batch of a list of samples; ``None`` takes torch's.
        transform: Applied on ``device`` to the first item of a batch that is a tuple or list, and
            to any other batch as a whole; its state is saved with the loader's if it has one.
        seed: Seed of the order and of the random draws of samples.
        generator: Source of both instead of ``seed``, on any device.
        with_indices: Whether batches also hold the positions of their samples in ``dataset``: as
            ``"indices"`` of a mapping, and after the other items of a tuple or list, there under
            this name where those have names. A batch of another kind becomes ``(batch,
            positions)``. ``transform`` is applied to the batch without them.
        device: Where to give batches. Those for a CUDA device are read into pinned memory, from
            which copies do not block the host. ``None`` leaves batches where they are read.

    Raises:
        ValueError: When the dataset has no samples or no positions, a number is out of range, or a
            CUDA device is named that is not there.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        with_indices: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        _check_dataset(dataset)
        require_function("SampleLoader", "transform", transform)
        require_function("SampleLoader", "collate_fn", collate_fn)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch_factor", prefetch_factor, 1),
        ):
            if not is_count(value, least):
                raise ValueError(f"{name}={value} was given; use at least {least}.")
        self.device = None if device is None else checked_device("SampleLoader", device)
        self.dataset = dataset
        self._asked = batch_size
        self._rank, self._world = 0, 1
        self.batch_size = min(batch_size, len(dataset))
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.transform = transform
        self.generator = generator_of("SampleLoader", seed, generator)
        self.with_indices = with_indices
        self._size = len(dataset)
        self._epochs = Epochs(self._size, shuffle, self.generator)
        self._reader = SampleReader(dataset, collate_fn or default_collate, with_indices)
        self._idle: list[tuple[Requests, DataLoader[Any]]] = []

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        full, remainder = divmod(self._size, self.batch_size * self._world)
        return full + (1 if remainder and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Any]:
        """Start a new epoch, or the remainder of one just restored by :meth:`load_state_dict`.

        Yields:
            Batches as ``collate_fn`` makes them.

        Raises:
            DataError: When a sample cannot be read, naming its position.
        """
        return self._batches(self._epochs.begin())

    @property
    def batch_number(self) -> int | None:
        """The number of the last batch among those of an epoch; ``None`` where they are shuffled or
        none was given."""
        return None if self.shuffle else self._epochs.delivered - 1

    def take_share(self, rank: int, world: int) -> None:
        """Read only every ``world``-th sample of the order, starting at ``rank``.

        This holds from the next epoch on. Where the last samples of an epoch cannot be shared out
        equally, some are repeated. A transform with a ``take_share`` draws differently in each
        process.
        """
        if (rank, world) == (self._rank, self._world):
            return
        self._rank, self._world = rank, world
        self.batch_size = min(self._asked, -(-self._size // world))
        self._epochs = Epochs(self._size, self.shuffle, self.generator)
        # Running workers have requests for other batches.
        self._idle = []
        transform: Any = self.transform
        if hasattr(transform, "take_share"):
            transform.take_share(rank, world)

    def _batches(self, epoch: Epoch) -> Iterator[Any]:
        requests, loader, source = self._begun(epoch)
        try:
            while epoch.delivered < len(self):
                batch = self._delivered(self._read(source))
                epoch.delivered += 1
                yield batch
        except GeneratorExit:
            self._idle.append((requests, loader))
            raise
        # After any other exception the workers may have stopped, and are not used again.
        self._idle.append((requests, loader))
        self._epochs.end(epoch)

    def _begun(self, epoch: Epoch) -> tuple[Requests, DataLoader[Any], Iterator[Any]]:
        # An epoch that runs concurrently with another gets its own workers.
        fresh = not self._idle
        requests, loader = self._open() if fresh else self._idle.pop()
        requests.epoch = epoch
        # Torch draws a seed on its default device, where the loader's generator may not be.
        with torch.device("cpu"):
            source = iter(loader)
        if fresh:
            # When a loader is collected as part of a reference cycle, such as an engine's, the
            # queues by which it stops its workers could be collected first; it would then wait
            # seconds for each worker.
            weakref.finalize(loader, id, getattr(source, "_index_queues", None))
        return requests, loader, source

    def _read(self, source: Iterator[Any]) -> Any:
        if not self.num_workers:
            with preserved_streams(_HOST):
                return next(source)
        try:
            return next(source)
        except Exception as error:
            # The traceback and torch's frames form a reference cycle that keeps workers alive. The
            # worker's own traceback is in the message.
            raise error.with_traceback(None) from error.__cause__

    def _open(self) -> tuple[Requests, DataLoader[Any]]:
        requests = Requests(self.batch_size, len(self), self._rank, self._world)
        loader: DataLoader[Any] = DataLoader(
            self._reader,
            batch_size=None,
            sampler=requests,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.device is not None and self.device.type == "cuda",
            worker_init_fn=keep_what_is_inherited,
            # Without it the loader draws a seed for its workers from the global stream.
            generator=torch.Generator(),
        )
        return requests, loader

    def _delivered(self, read: Any) -> Any:
        if self.device is not None:
            read = move_batch(read, self.device)
        if not self.with_indices:
            return self._transformed(read)
        batch, positions = read
        return with_positions("SampleLoader", self._transformed(batch), positions)

    def _transformed(self, batch: Any) -> Any:
        if self.transform is None:
            return batch
        if not isinstance(batch, (tuple, list)):
            return self.transform(batch)
        items = [self.transform(batch[0]), *batch[1:]]
        if hasattr(batch, "_fields"):
            return type(batch)(*items)
        return type(batch)(items)

    def state_dict(self) -> dict[str, Any]:
        """Save the generator, the position in the latest epoch and the state of the transform.

        A state saved after the last batch of an epoch, but before the iteration stopped, restores
        an epoch without batches left, as the original one. The state fits loaders of any
        ``num_workers``.
        """
        return {
            "layout": self._layout(),
            **self._epochs.state_dict(),
            **with_transform(self.transform),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: the next ``iter`` gives the rest of its epoch.

        Raises:
            ValueError: When the loader that saved ``state`` was built differently.
        """
        require_same(state, self._layout(), self.transform)
        self._epochs.load_state_dict(state)
        load_transform(state, self.transform)

    def _layout(self) -> dict[str, int | bool]:
        return {
            "samples": self._size,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            **({"processes": self._world} if self._world > 1 else {}),
        }


def _check_dataset(dataset: Any) -> None:
    kind = type(dataset).__name__
    by_position = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or not by_position:
        raise ValueError(
            f"SampleLoader was given a dataset of type {kind}, which cannot be read by position; "
            "give one with __len__ and __getitem__, or use torch.utils.data.DataLoader."
        )
    if not len(dataset):
        raise ValueError(
            f"SampleLoader was given a dataset of type {kind} without samples; give at least one."
        )
