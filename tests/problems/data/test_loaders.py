"""Batches from one or several loaders, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from metaweight.problems.data.loaders import BatchSource
from support.small import Chase, numbers, problem, single

from metaweight import DataError, ImplicitProblem

CPU = torch.device("cpu")


def source(*loaders: Any, ends: list[int] | None = None) -> BatchSource:
    noted = [] if ends is None else ends
    return BatchSource("inner", list(loaders), lambda: noted.append(1))


def test_an_ended_loader_starts_again_and_its_epoch_is_counted() -> None:
    ends: list[int] = []
    drawn = source([1, 2], ends=ends)
    assert [drawn.draw(0, CPU) for _ in range(2)] == [1, 2]
    assert (drawn.epochs, len(ends)) == ([0], 0)
    assert [drawn.draw(0, CPU) for _ in range(3)] == [1, 2, 1]
    assert (drawn.epochs, len(ends)) == ([2], 2)


def test_every_loader_has_its_own_epochs_and_only_the_first_calls_back() -> None:
    ends: list[int] = []
    drawn = source([1, 2, 3], ["a"], ends=ends)
    pairs = [(drawn.draw(0, CPU), drawn.draw(1, CPU)) for _ in range(4)]
    assert pairs == [(1, "a"), (2, "a"), (3, "a"), (1, "a")]
    assert (drawn.epochs, len(ends)) == ([1, 3], 1)


def test_a_loader_is_iterated_at_the_first_batch_only() -> None:
    starts: list[int] = []

    class Noting:
        def __iter__(self) -> Iterator[int]:
            starts.append(1)
            return iter([7, 8])

    drawn = source(Noting())
    assert starts == []
    drawn.draw(0, CPU)
    drawn.draw(0, CPU)
    assert starts == [1]


MESSAGE = r"Loader 0 of problem 'inner' gave no batch.*empty, or a generator.*only once"


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(DataError, match=MESSAGE):
        source([]).draw(0, CPU)


def test_a_generator_is_read_once_and_then_refused() -> None:
    drawn = source(n for n in (1, 2))
    assert [drawn.draw(0, CPU), drawn.draw(0, CPU)] == [1, 2]
    with pytest.raises(DataError, match=MESSAGE):
        drawn.draw(0, CPU)


def test_another_loader_takes_over_from_the_next_batch_on() -> None:
    drawn = source([1, 2], [3])
    drawn.draw(0, CPU)
    drawn.replace([10, 20], 0)
    assert [drawn.draw(0, CPU), drawn.draw(1, CPU), drawn.draw(0, CPU)] == [10, 3, 20]
    for index in (2, -1):
        with pytest.raises(DataError, match=rf"idx={index}\) was asked.*has 2 loader\(s\)"):
            drawn.replace([1], index)


def test_batches_are_moved() -> None:
    moved = source([{"x": torch.ones(1)}]).draw(0, torch.device("meta"))
    assert moved["x"].device.type == "meta"


class Summing(ImplicitProblem):
    """Goes up by the sum of its batch."""

    def training_step(self, batch: Any) -> Any:
        total = sum(batch) if isinstance(batch, tuple) else batch
        return -(total * self.module()).sum()

    def epoch_callback(self) -> None:
        self.ended = [*getattr(self, "ended", []), self.count]


def summing(*loaders: Any) -> Any:
    return problem(Summing, "summing", data=loaders if len(loaders) > 1 else loaders[0], lr=1.0)


def test_several_loaders_give_a_tuple() -> None:
    lower = summing(numbers(1.0, 2.0), numbers(10.0, 20.0, 30.0))
    single(lower, steps=3).run()
    assert lower.module.w.item() == (1 + 10) + (2 + 20) + (1 + 30)
    assert lower.epoch_counter == [1, 0]
    assert lower.ended == [3]


def test_a_list_is_one_loader_of_batches_and_not_several() -> None:
    lower = summing(numbers(1.0, 2.0))
    single(lower, steps=2).run()
    assert lower.module.w.item() == 3.0


def test_setting_a_loader_during_a_run() -> None:
    lower = summing(numbers(1.0), numbers(10.0))
    engine = single(lower)
    engine.run()
    lower.set_train_data_loader(numbers(5.0), idx=1)
    engine.run()
    assert lower.module.w.item() == 11 + 6


def test_an_overridden_get_batch_may_draw_from_single_loaders() -> None:
    class Alternating(Summing):
        def get_batch(self) -> Any:
            return self.get_batch_single_loader(self.count % 2)

    lower = problem(Alternating, "a", data=(numbers(1.0), numbers(10.0)), lr=1.0)
    single(lower, steps=3).run()
    assert lower.module.w.item() == 10 + 1 + 10


def test_an_overridden_get_batch_needs_no_loader() -> None:
    class Making(Chase):
        def get_batch(self) -> Any:
            return torch.ones(1, dtype=torch.float64)

    lower = problem(Making, data=None)
    lower.train_data_loader = None
    single(lower).run()
    assert lower.module.w.item() == pytest.approx(0.1)


class Peeking:
    """A loader that looks for its first batch when it is started."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def __iter__(self) -> Iterator[int]:
        self.left -= 1
        batches = iter([7] if self.left >= 0 else [])
        return iter([next(batches)])


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_loader_that_finds_no_first_batch_is_empty(epochs: int) -> None:
    """Its StopIteration would end a loop around the steps, without a word."""
    source = BatchSource("inner", [Peeking(epochs)], lambda: None)
    drawn = [source.draw(0, torch.device("cpu")) for _ in range(epochs)]
    assert drawn == [7] * epochs
    with pytest.raises(DataError, match=MESSAGE):
        source.draw(0, torch.device("cpu"))
