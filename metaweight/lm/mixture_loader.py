"""A loader that draws sequences by a mixture of sources, such as one that is being learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaweight._generator import generator_of
from metaweight.data._sample_reader import derived_seed
from metaweight.data._saved_state import require_same
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_part, require_count, shown

from .sources import Sources
from .text_collate import TextCollate


class MixtureLoader:
    """Iterable of batches whose sequences come from source s with probability ``m_s``. ::

        m = (1 - explore) p + explore / k,      proposal = k m_s

    ``p`` is the mixture: shares that are given, or the ``softmax(θ)`` of :class:`Sources`, read
    again every ``refresh`` batches. Each batch says for each of its sequences the ``source`` and
    the ``proposal``, which :class:`WeightedLM` divides weights by: ``k p_s / (k m_s)`` is the
    importance weight for the expectation under ``p``, also after ``p`` has moved on, and is at most
    ``1 / (1 - explore)`` when it is read. Sources are numbers (B,) where the mixture is one of
    :class:`Sources`, and otherwise names, in a list. Samples of a source come in a random order,
    each once before any comes again.

    In a program of ``world`` processes ``batch_size`` is that of each process; all draw the same.

    Args:
        datasets: A dataset, with ``len`` and positions, for each source, by its name.
        batch_size: Sequences in a batch.
        mixture: The learned sources, with these names; or one share for each dataset.
        collate: As for :class:`TextCollate`.
        explore: Share of draws in equal parts from all sources, in [0, 1).
        refresh: Batches between two readings of the learned mixture, which wait for its device.
        seed: Seed of all draws.
        generator: Source of the draws instead of ``seed``.

    Raises:
        ConfigurationError: For a setting out of range, and a mixture of other sources.
        DataError: For a dataset without samples.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        batch_size: int,
        *,
        mixture: Sources | Sequence[float],
        collate: Any = None,
        explore: float = 0.1,
        refresh: int = 100,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        require_count("MixtureLoader", "batch_size", batch_size, least=1)
        require_count("MixtureLoader", "refresh", refresh, least=1)
        if not is_part(explore):
            raise ConfigurationError(
                f"MixtureLoader(explore={explore!r}) must be a number in [0, 1)."
            )
        for name, dataset in datasets.items():
            if not len(dataset):
                raise DataError(
                    f"MixtureLoader was given the source {name!r} without samples; leave it out."
                )
        self.datasets = dict(datasets)
        self.batch_size = batch_size
        self.explore = explore
        self.refresh = refresh
        self._mixture = mixture
        self._names = _names_of(mixture, list(self.datasets))
        self._collate: Callable[[list[Any]], dict[str, Any]] = TextCollate(collate)
        self.generator = generator_of("MixtureLoader", seed, generator)
        self._key = int(torch.randint(2**62, (), generator=self.generator))
        self._rank, self._world = 0, 1
        self._taken = [0] * len(self._names)
        self._orders: dict[int, tuple[int, Tensor]] = {}
        self._probabilities = torch.empty(0)
        self._drawn = 0
        self._delivered = 0
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of batches in an epoch: of as many sequences as there are samples."""
        total = sum(map(len, self.datasets.values()))
        return max(1, total // (self.batch_size * self._world))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Start an epoch, or the remainder of one just restored by :meth:`load_state_dict`."""
        if not self._resumed:
            self._delivered = 0
        self._resumed = False
        while self._delivered < len(self):
            self._delivered += 1
            yield self._batch()

    def take_share(self, rank: int, world: int) -> None:
        """Read only every ``world``-th sequence of those drawn, starting at ``rank``."""
        self._rank, self._world = rank, world

    def state_dict(self) -> dict[str, Any]:
        """Save the generator, the places in all datasets, and the mixture that is drawn from."""
        return {
            "layout": self._layout(),
            "transform": None,
            "generator": self.generator.get_state(),
            "key": self._key,
            "taken": list(self._taken),
            "probabilities": self._probabilities.tolist(),
            "drawn": self._drawn,
            "delivered": self._delivered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: the next ``iter`` gives the rest of its epoch.

        Raises:
            ValueError: When the loader that saved ``state`` was built differently.
        """
        require_same(state, self._layout(), None)
        self.generator.set_state(state["generator"].cpu())
        self._key = int(state["key"])
        self._taken = [int(n) for n in state["taken"]]
        self._probabilities = torch.tensor(state["probabilities"], dtype=torch.float64)
        self._drawn, self._delivered = int(state["drawn"]), int(state["delivered"])
        self._orders = {}
        self._resumed = True

    def _batch(self) -> dict[str, Any]:
        if self._drawn % self.refresh == 0:
            self._probabilities = self._read_mixture()
        self._drawn += 1
        number = self.batch_size * self._world
        device = self.generator.device
        sources = torch.multinomial(
            self._probabilities.to(device), number, replacement=True, generator=self.generator
        ).cpu()
        samples = [self._next_of(source) for source in sources.tolist()]
        own = slice(self._rank, None, self._world)
        batch = self._collate([dataset[place] for dataset, place in samples[own]])
        rates = len(self._names) * self._probabilities[sources[own]]
        drawn: Any = sources[own]
        if not isinstance(self._mixture, Sources):
            # Nothing says in which order whoever reads these would number them.
            drawn = [self._names[number] for number in drawn.tolist()]
        return batch | {"source": drawn, "proposal": rates.float()}

    def _read_mixture(self) -> Tensor:
        given = self._mixture
        if isinstance(given, Sources):
            shares = given.logits.detach().double().softmax(0).cpu()
        else:
            shares = torch.tensor(given, dtype=torch.float64)
        return (1 - self.explore) * shares / shares.sum() + self.explore / len(shares)

    def _next_of(self, source: int) -> tuple[Any, int]:
        dataset = self.datasets[self._names[source]]
        turn, place = divmod(self._taken[source], len(dataset))
        self._taken[source] += 1
        if self._orders.get(source, (-1, None))[0] != turn:
            seed = derived_seed(self._key + source, turn) >> 1
            draw = torch.Generator().manual_seed(seed)
            self._orders[source] = turn, torch.randperm(len(dataset), generator=draw)
        return dataset, int(self._orders[source][1][place])

    def _layout(self) -> dict[str, Any]:
        return {
            "samples": [len(self.datasets[name]) for name in self._names],
            "batch_size": self.batch_size,
            "explore": self.explore,
            "refresh": self.refresh,
            **({"processes": self._world} if self._world > 1 else {}),
        }


def _names_of(mixture: Any, names: list[str]) -> list[Any]:
    """Return the names of datasets in the order of the mixture."""
    if isinstance(mixture, Sources):
        if {*mixture.names} == {*names}:
            return list(mixture.names)
        given = f"Sources of {shown(list(mixture.names))}"
    else:
        shares = list(mixture) if isinstance(mixture, Sequence) else []
        if len(shares) == len(names) and all(s >= 0 for s in shares) and sum(shares) > 0:
            return names
        given = f"mixture={shown(mixture)}"
    raise ConfigurationError(
        f"MixtureLoader received {given} for datasets named {shown(names)}; give Sources with "
        "these names, or one share for each of them."
    )
