"""What batches hold, in one process and in several."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import DataError
from support.devices import GPU, no_waiting
from support.drawn_samples import Augmented, Broken, Images, epochs, same
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from metaweight import Engine, EngineConfig, ImplicitProblem
from metaweight.data import RandomCropFlip, SampleLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


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
