"""Batches that workers read: their order and their random numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from metaweight.problems import DataError
from support.drawn_samples import Augmented, Broken, epochs, same
from torch import Tensor
from torch.utils.data import Dataset

from metaweight.data import SampleLoader
from metaweight.data._sample_reader import derived_seed

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def streams() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()
    words = numpy_state[1].tolist()
    return torch.get_rng_state().tolist(), (*numpy_state[2:], words), random.getstate()


def leave_gaussians_pending() -> None:
    random.gauss(0, 1)
    np.random.randn()
    torch.randn(1)


def test_every_epoch_holds_each_sample_once_in_another_order():
    loader = SampleLoader(Augmented(), 4, with_indices=True)
    orders = []
    for epoch in epochs(loader):
        for inputs, labels, positions in epoch:
            assert inputs[:, 0].long().equal(positions)
            assert labels.equal(positions % 3)
        orders.append(torch.cat([positions for _, _, positions in epoch]).tolist())
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_length_is_the_number_of_batches(batch_size, drop_last):
    loader = SampleLoader(Augmented(), batch_size, drop_last=drop_last, shuffle=False)
    sizes = [len(labels) for _, labels in loader]
    whole = {1: [1] * 10, 3: [3, 3, 3], 5: [5, 5]}.get(batch_size, [10])
    assert sizes == whole + ([1] if batch_size == 3 and not drop_last else [])
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_whatever_the_number_of_workers(workers):
    alone = epochs(SampleLoader(Augmented(), 3, seed=4), 3)
    others = epochs(SampleLoader(Augmented(), 3, seed=4, num_workers=workers, prefetch_factor=3), 3)
    assert same(alone, others)
    assert not same(alone, epochs(SampleLoader(Augmented(), 3, seed=5), 3))
    generator = torch.Generator().manual_seed(4)
    assert same(alone, epochs(SampleLoader(Augmented(), 3, generator=generator), 3))


def test_what_a_sample_draws_depends_on_its_place_and_not_on_its_batch():
    narrow, wide = (
        [torch.cat([inputs for inputs, _ in epoch]) for epoch in epochs(loader)]
        for loader in (SampleLoader(Augmented(), 2), SampleLoader(Augmented(), 5))
    )
    assert same(narrow, wide)
    draws = torch.cat(narrow)[:, 1:]
    for column in draws.T:
        assert len(column.unique()) == 20


def test_streams_are_independent_of_each_other():
    class Uniform(Dataset[Any]):
        def __len__(self) -> int:
            return 20_000

        def __getitem__(self, index: int) -> Tensor:
            # 24 bits of each one's first word: of equal seeds torch and NumPy draw the same.
            word = int(np.random.randint(2**32, dtype=np.uint32)) % 2**24
            return torch.tensor([float(torch.rand(())), word / 2**24, random.random()])

    (draws,) = SampleLoader(Uniform(), 20_000)
    # Five standard deviations of mean and correlation of 20 000 independent uniform numbers.
    assert (draws.mean(0) - 0.5).abs().max() < 5 * 12**-0.5 / 20_000**0.5
    correlation = torch.corrcoef(torch.cat([draws[1:], draws[:-1]], 1).T) - torch.eye(6)
    shifted = torch.diagonal(correlation[:3, 3:])
    assert correlation[:3, :3].abs().max() < 5 / 20_000**0.5
    assert shifted.abs().max() < 5 / 20_000**0.5


def test_the_derived_seeds_are_those_of_splitmix64():
    # The first outputs of the published generator from the state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [derived_seed(1234567, place) for place in range(3)] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_streams_go_on_as_if_nothing_had_been(workers):
    loader = SampleLoader(Augmented(), 3, num_workers=workers)
    leave_gaussians_pending()
    before = streams()
    for _ in loader:
        assert streams() == before
    next(iter(loader))
    assert streams() == before
    random.random(), np.random.rand(), torch.rand(1)
    moved = streams()
    first, second = epochs(loader)
    assert streams() == moved != before
    assert not same(first, second)


def test_the_streams_are_kept_when_a_sample_fails():
    before = streams()
    with pytest.raises(DataError):
        list(SampleLoader(Broken(), 10))
    assert streams() == before
