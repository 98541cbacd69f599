from __future__ import annotations

import gc
import io
import itertools
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import DataError
from support.devices import GPU, no_waiting
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from metaweight import Engine, EngineConfig, ImplicitProblem
from metaweight.data import RandomCropFlip, SampleLoader
from metaweight.data._sample_reader import derived_seed

# The number of cores of the machine that runs the tests is no matter here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Augmented(Dataset[Any]):
    """Samples that draw from every global stream, an odd number of Gaussians from each."""

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()]
        drawn = torch.cat([torch.randn(1), torch.rand(1), torch.tensor(draws).float()])
        return torch.cat([torch.tensor([float(index)]), drawn]), index % 3


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 6, 6), float(index)) + torch.rand(1, 6, 6), index


class ProcessIds(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


class Broken(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7:
            raise OSError("the file is torn")
        return super().__getitem__(index)


class Deadly(Augmented):
    """Kills the first worker that reads sample 7."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Named(NamedTuple):
    image: Tensor
    label: int


def epochs(loader: SampleLoader, number: int = 2) -> list[list[Any]]:
    return [list(loader) for _ in range(number)]


def endless(loader: SampleLoader) -> Iterator[Any]:
    while True:
        yield from loader


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    return len(first) == len(second) and all(map(same, first, second))


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


def test_workers_start_with_the_first_batch_and_stay():
    loader = SampleLoader(ProcessIds(), 2, num_workers=2)
    iterator = iter(loader)
    assert not torch.multiprocessing.active_children()
    first = torch.cat([next(iterator), *iterator])
    ids = {process.pid for process in torch.multiprocessing.active_children()}
    assert set(first.tolist()) == ids
    assert os.getpid() not in ids
    assert set(torch.cat(list(loader)).tolist()) == ids
    del iterator, loader
    gc.collect()
    assert not torch.multiprocessing.active_children()


@pytest.mark.parametrize("abandoned", [False, True])
def test_workers_end_by_themselves_where_a_circle_of_garbage_holds_them(abandoned, monkeypatch):
    # A worker that is not told to end is waited for, for this long, and then stopped.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 30)
    stopped = []
    monkeypatch.setattr(BaseProcess, "terminate", stopped.append)
    loader = SampleLoader(Augmented(), 2, num_workers=2)
    iterator = iter(loader)
    first = next(iterator) if abandoned else list(iterator)
    circle = [loader, iterator, first]
    circle.append(circle)
    del loader, iterator, first, circle
    gc.collect()
    assert not torch.multiprocessing.active_children()
    assert not stopped


def test_the_garbage_collector_of_a_worker_leaves_alone_what_is_inherited():
    class Frozen(ProcessIds):
        def __getitem__(self, index: int) -> int:
            return gc.get_freeze_count()

    inherited = [[] for _ in range(20_000)]
    before = gc.get_freeze_count()
    (frozen,) = SampleLoader(Frozen(), 4, num_workers=1)
    assert frozen.min() > before + len(inherited)


def test_the_transform_sees_the_inputs_of_the_batch():
    pairs = TensorDataset(torch.arange(4.0), torch.arange(4))
    named = [Named(torch.tensor(float(i)), i) for i in range(4)]
    given = {"shuffle": False, "transform": torch.neg, "device": "cpu"}
    inputs, labels, positions = next(iter(SampleLoader(pairs, 4, with_indices=True, **given)))
    assert inputs.tolist() == [0, -1, -2, -3]
    assert labels.tolist() == positions.tolist() == [0, 1, 2, 3]
    batch = next(iter(SampleLoader(named, 4, **given)))
    assert isinstance(batch, Named)
    assert (batch.image.tolist(), batch.label.tolist()) == ([0, -1, -2, -3], [0, 1, 2, 3])
    assert next(iter(SampleLoader([1, 2], 2, **given))).tolist() == [-1, -2]
    alone, positions = next(iter(SampleLoader([1, 2], 2, with_indices=True, **given)))
    assert (alone.tolist(), positions.tolist()) == ([-1, -2], [0, 1])


def test_samples_are_collated_as_told():
    words = ["one", "three", "seven", "eleven"]
    loader = SampleLoader(words, 2, shuffle=False, collate_fn="-".join, num_workers=1)
    assert list(loader) == ["one-three", "seven-eleven"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_named(workers):
    loader = SampleLoader(Broken(), 2, shuffle=False, num_workers=workers)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    with pytest.raises(DataError, match=r"Sample 7 of .* Broken .*OSError: the file is torn"):
        next(iterator)
    assert loader.state_dict()["delivered"] == 3
    # The workers of the iterator that failed do not wait for the garbage collector.
    assert not torch.multiprocessing.active_children()
    assert len(next(iter(loader))[1]) == 2


def test_an_epoch_goes_on_with_new_workers_where_one_was_killed(tmp_path):
    loader = SampleLoader(Deadly(tmp_path / "mark"), 2, num_workers=1)
    delivered = []
    with pytest.raises(RuntimeError, match="worker"):
        delivered += loader
    delivered = list(
        itertools.islice(SampleLoader(Augmented(), 2), loader.state_dict()["delivered"])
    )
    loader.load_state_dict(loader.state_dict())
    assert same([*delivered, *loader], list(SampleLoader(Augmented(), 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 3}, "'batch_size': 4.* was given to one with .*'batch_size': 3"),
        ({"batch_size": 4, "shuffle": False}, "'shuffle': True.* was given to one with"),
        ({"batch_size": 4, "transform": RandomCropFlip()}, "do not both have a state"),
    ],
)
def test_a_state_of_another_loader_is_refused(arguments, message):
    state = SampleLoader(Augmented(), 4).state_dict()
    loader = SampleLoader(Augmented(), **arguments)
    before = loader.state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    assert loader.generator.get_state().equal(before["generator"])


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        ([], {"batch_size": 4}, "type list without samples; give at least one"),
        (Endless(), {"batch_size": 4}, "type Endless, which cannot be read by position; give one"),
        (iter([1]), {"batch_size": 4}, "type list_iterator, which cannot be read by position"),
        ([1], {"batch_size": 0}, "batch_size=0 was given; use at least 1"),
        ([1], {"batch_size": 1, "num_workers": -1}, "num_workers=-1 was given; use at least 0"),
        ([1], {"batch_size": 1, "prefetch_factor": 0}, "prefetch_factor=0 .* at least 1"),
    ],
)
def test_impossible_loaders_are_refused(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleLoader(dataset, **arguments)


class Regression(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        self.seen = [*getattr(self, "seen", []), inputs]
        return F.cross_entropy(self.module(inputs), labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_problem_trains_on_it_across_the_end_of_an_epoch(workers):
    loader = SampleLoader(Augmented(), 4, num_workers=workers)
    net = torch.nn.Linear(7, 3)
    problem = Regression(
        "fit",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        train_data_loader=loader,
    )
    engine = Engine([problem], EngineConfig(train_iters=7, strategy="cpu"), {"u2l": {}, "l2u": {}})
    engine.run()
    expected = [inputs for epoch in epochs(SampleLoader(Augmented(), 4), 3) for inputs, _ in epoch]
    assert same(problem.seen, expected[:7])


@pytest.mark.parametrize(
    ("device", "workers"),
    [("cpu", 0), *(pytest.param("cuda", workers, marks=GPU) for workers in (0, 2))],
)
def test_batches_reach_the_device_without_the_host_waiting(device, workers):
    loader = SampleLoader(
        Images(),
        4,
        device=device,
        num_workers=workers,
        transform=RandomCropFlip(2, generator=torch.Generator(device).manual_seed(0)),
    )
    rng_state = (torch if device == "cpu" else torch.cuda).get_rng_state
    before = rng_state()
    with no_waiting(device):
        batches = list(loader)
    assert rng_state().equal(before)
    expected = list(
        SampleLoader(
            Images(),
            4,
            transform=RandomCropFlip(2, generator=torch.Generator(device).manual_seed(0)),
        )
    )
    assert all(item.device.type == device for batch in batches for item in batch)
    assert same([[item.cpu() for item in batch] for batch in batches], expected)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_shares_together_are_the_batches_of_one_process(world: int, workers: int) -> None:
    """Positions and the numbers that samples draw; the last batch of 1 is given to all."""
    dataset = [float(number) for number in range(4 * world + 1)]

    class Drawing(Dataset):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, position: int) -> torch.Tensor:
            return dataset[position] + torch.rand(())

    whole = list(SampleLoader(Drawing(), 2 * world, seed=3))
    shares = []
    for rank in range(world):
        loader = SampleLoader(Drawing(), 2, seed=3, num_workers=workers)
        loader.take_share(rank, world)
        assert len(loader) == len(whole) == 3
        shares.append(list(loader))
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        together = torch.stack(parts, 1).reshape(-1)
        assert torch.equal(together[: len(batch)], batch)
        assert torch.isin(together, batch).all()


def test_a_share_goes_on_where_it_was_saved() -> None:
    def made() -> SampleLoader:
        loader = SampleLoader(list(range(20)), 2, seed=1)
        loader.take_share(1, 2)
        return loader

    first, second = made(), made()
    batches = iter(first)
    next(batches)
    second.load_state_dict(first.state_dict())
    assert [b.tolist() for b in second] == [b.tolist() for b in batches]
    with pytest.raises(ValueError, match="processes"):
        SampleLoader(list(range(20)), 2, seed=1).load_state_dict(first.state_dict())
