"""Orders of batches, the same for every contender, and the loader that gives them.

benchmark_bilevel's sampler gives the last batch of a permutation twice; here each batch comes once
an epoch, for all contenders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .problems import Batch

LEVELS = ("lower", "upper")


def generator(seed: int, level: str) -> np.random.Generator:
    """Return what the permutations of a level's batches are drawn from, one for each epoch."""
    return np.random.default_rng([seed, LEVELS.index(level)])


def numbers(number: int, seed: int, level: str, length: int) -> NDArray[np.int64]:
    """Return the numbers of the first ``length`` batches of ``number``."""
    draw = generator(seed, level)
    return np.concatenate([draw.permutation(number) for _ in range(-(-length // number))])[:length]


class Shuffled:
    """A loader of a fixed division into batches, in another order each epoch.

    It saves its position and draws from no stream of others, as the loaders of metaweight do, so
    that a run need not watch for either.

    Attributes:
        batch_number: The number of the batch that it gave last.
    """

    def __init__(self, batches: Sequence[Batch], seed: int, level: str) -> None:
        self._batches = batches
        self._draw = generator(seed, level)
        self._left: list[int] = []
        self.batch_number = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if not self._left:
            self._left = self._draw.permutation(len(self._batches)).tolist()
        while self._left:
            self.batch_number = self._left.pop(0)
            yield self._batches[self.batch_number]

    def state_dict(self) -> dict[str, Any]:
        """Return its position."""
        return {"drawn": self._draw.bit_generator.state, "left": list(self._left)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self._draw.bit_generator.state = state["drawn"]
        self._left = list(state["left"])

    def take_share(self, rank: int, world: int) -> None:
        """Refuse to be shared out."""
        raise ValueError(f"Batches are those of one process; asked for {rank} of {world}.")
