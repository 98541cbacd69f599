"""Loaders are put where they stood in their epoch, and nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from metaweight.problems.data.loaders import BatchSource
from metaweight.problems.state.plain_data import from_plain, to_plain
from support.resuming import Noisy, samples, seed_all
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from metaweight import DataError

CPU = torch.device("cpu")


class Numbers(Dataset[int]):
    def __init__(self, number: int = 10) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[float]):
    def __iter__(self) -> Iterator[float]:
        for _ in range(7):
            yield float(torch.rand(()))


def source(loader: Any) -> BatchSource:
    return BatchSource("p", [loader], lambda: None)


def drawn(source: BatchSource, number: int) -> list[Any]:
    found = []
    for _ in range(number):
        batch = source.draw(0, CPU)
        found.append(
            [part.tolist() for part in batch] if isinstance(batch, list) else batch.tolist()
        )
        torch.rand(3)
    return found


def end_workers(*sources: BatchSource) -> None:
    """End them now: the collector of garbage waits 5 s for each."""
    for each in sources:
        each.readings[0].iterator = None
        if hasattr(each.loaders[0], "_iterator"):
            # Workers that stay are held by their loader.
            each.loaders[0]._iterator = None


def assert_goes_on(make: Any, before: int, after: int, where: Any = None) -> None:
    seed_all(0)
    first = source(make())
    drawn(first, before)
    position = to_plain(first.position(0), "It")
    state = torch.get_rng_state()
    expected = drawn(first, after)
    seed_all(1)
    second = source(make())
    second.go_to(0, from_plain(position, CPU), CPU)
    torch.set_rng_state(state)
    assert drawn(second, after) == expected
    assert second.epochs == first.epochs
    end_workers(first, second)


LOADERS: dict[str, Any] = {
    "shuffled": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True),
    "a generator of its own": lambda: DataLoader(
        Numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0)
    ),
    "drawn with replacement": lambda: DataLoader(
        Numbers(),
        batch_size=3,
        sampler=torch.utils.data.WeightedRandomSampler([1.0] * 10, 12),
    ),
    "a stream": lambda: DataLoader(Stream(), batch_size=2),
    "workers": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, num_workers=1),
    "workers that stay": lambda: DataLoader(
        Numbers(), batch_size=3, shuffle=True, num_workers=1, persistent_workers=True
    ),
}


@pytest.mark.filterwarnings("ignore:.*has persistent workers")
@pytest.mark.parametrize("before", [0, 1, 4, 6])
@pytest.mark.parametrize("name", LOADERS)
def test_the_next_batches_are_the_same(name: str, before: int) -> None:
    assert_goes_on(LOADERS[name], before, 7)


def test_a_distributed_sampler_keeps_its_epoch() -> None:
    def make() -> DataLoader[int]:
        sampler: Any = DistributedSampler(Numbers(), num_replicas=2, rank=1)
        return DataLoader(Numbers(), batch_size=2, sampler=sampler)

    first = source(make())
    first.loaders[0].sampler.set_epoch(3)
    drawn(first, 1)
    position = first.position(0)
    second = source(make())
    second.go_to(0, position, CPU)
    assert second.loaders[0].sampler.epoch == 3
    assert drawn(second, 2) == drawn(first, 2)


def test_going_on_leaves_all_random_streams_alone() -> None:
    seed_all(0)
    first = source(DataLoader(Noisy(samples(10, 0)), batch_size=2, shuffle=True))
    drawn(first, 3)
    second = source(DataLoader(Noisy(samples(10, 0)), batch_size=2, shuffle=True))
    second.go_to(0, first.position(0), CPU)
    state = torch.get_rng_state()
    second.readings[0]._begun(CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_position_is_kept_where_no_batch_has_been_drawn_since() -> None:
    first = source([torch.tensor(i) for i in range(5)])
    drawn(first, 3)
    second = source([torch.tensor(i) for i in range(5)])
    second.go_to(0, first.position(0), CPU)
    third = source([torch.tensor(i) for i in range(5)])
    third.go_to(0, second.position(0), CPU)
    assert drawn(third, 3) == [3, 4, 0]


def test_it_warns_where_it_cannot_know_that_batches_are_the_same() -> None:
    for make, before, message in (
        (
            lambda: iter([torch.tensor(i) for i in range(9)]),
            2,
            "is an iterator of type .*: 2 of its batches",
        ),
        (LOADERS["workers that stay"], 5, "has persistent workers: its order continues exactly"),
    ):
        first, second = source(make()), source(make())
        drawn(first, before)
        with pytest.warns(UserWarning, match=message):
            position = first.position(0)
        first.position(0)
        second.go_to(0, position, CPU)
        with pytest.warns(UserWarning, match=message):
            drawn(second, 1)
        end_workers(first, second)


def test_a_loader_with_fewer_batches_says_so() -> None:
    first = source([torch.tensor(i) for i in range(5)])
    drawn(first, 4)
    second = source([torch.tensor(i) for i in range(3)])
    second.go_to(0, first.position(0), CPU)
    with pytest.raises(
        DataError, match=r"Loader 0 of problem 'p' was to continue after batch 4 .* 3"
    ):
        drawn(second, 1)
