"""Loaders that go on where they were saved."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.drawn_samples import Augmented, Images, epochs, same

from metaweight.data import RandomCropFlip, SampleLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def endless(loader: SampleLoader) -> Iterator[Any]:
    while True:
        yield from loader


@pytest.mark.parametrize(
    ("delivered", "workers"),
    [
        *((delivered, 0) for delivered in (0, 1, 2, 3, 5)),
        *((delivered, 2) for delivered in (0, 2)),
        *(pytest.param(delivered, 2, marks=pytest.mark.slow) for delivered in (1, 3, 5)),
    ],
)
def test_a_restored_loader_goes_on_where_it_was(delivered, workers):
    def build(workers: int) -> SampleLoader:
        generator = torch.Generator().manual_seed(1)
        transform = RandomCropFlip(2, generator=generator)
        return SampleLoader(
            Images(), 4, generator=generator, transform=transform, num_workers=workers
        )

    original, restored = build(workers), build(workers)
    batches = endless(original)
    for _ in range(delivered):
        next(batches)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    expected = list(itertools.islice(batches, 7))
    for loader in (restored, build(2 - workers)):
        loader.load_state_dict(state)
        assert same(list(itertools.islice(endless(loader), 7)), expected)


def test_the_position_is_that_of_delivered_batches():
    loader = SampleLoader(Augmented(), 1, num_workers=2, prefetch_factor=5)
    iterator = iter(loader)
    for delivered in range(1, 4):
        next(iterator)
        assert loader.state_dict()["delivered"] == delivered


def test_a_restored_epoch_has_only_its_remaining_batches():
    original, restored = SampleLoader(Augmented(), 4), SampleLoader(Augmented(), 4)
    iterator = iter(original)
    next(iterator)
    restored.load_state_dict(original.state_dict())
    assert [len(list(restored)), len(list(restored))] == [2, 3]
    next(iterator)
    next(iterator)
    restored.load_state_dict(original.state_dict())
    assert [len(list(restored)), len(list(restored))] == [0, 3]
    assert next(iterator, None) is None
    restored.load_state_dict(original.state_dict())
    assert len(list(restored)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_an_epoch_early_starts_the_next_one(workers):
    loader = SampleLoader(Augmented(), 2, num_workers=workers)
    reference = epochs(SampleLoader(Augmented(), 2), 3)
    assert same(next(iter(loader)), reference[0][0])
    assert same(list(loader), reference[1])
    assert same(list(loader), reference[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_two_iterators_do_not_disturb_each_other(workers):
    loader = SampleLoader(Augmented(), 5, num_workers=workers)
    expected = epochs(SampleLoader(Augmented(), 5), 5)
    for older, newer in ((0, 1), (2, 3)):
        both = list(zip(loader, loader, strict=True))
        assert same(both, list(zip(expected[older], expected[newer], strict=True)))
    assert same(list(loader), expected[4])


def test_an_older_epoch_that_ends_leaves_the_latest_to_be_saved():
    loader = SampleLoader(Augmented(), 5)
    older, newer = iter(loader), iter(loader)
    next(newer)
    assert len(list(older)) == 2
    assert loader.state_dict()["delivered"] == 1


def test_a_state_between_epochs_leads_to_the_same_next_epoch():
    original, restored = SampleLoader(Augmented(), 4), SampleLoader(Augmented(), 4)
    list(original)
    restored.load_state_dict(original.state_dict())
    assert same(list(restored), list(original))
