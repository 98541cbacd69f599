"""Resumed runs read what the uninterrupted run reads, whatever their loaders and samplers draw."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metaweight.problems.data.loaders import BatchSource
from metaweight.problems.state.plain_data import from_plain, to_plain
from metaweight.problems.state.random_streams import RandomState
from support.accelerate_checks import forget_accelerator
from support.resuming import Noisy, samples, seed_all
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from metaweight import Engine, EngineConfig, ImplicitProblem

CPU = torch.device("cpu")
DATA = TensorDataset(samples(20, 1).inputs, samples(20, 1).labels)
NOISY = Noisy(samples(20, 1))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


class Ordered(Sampler[int]):
    """Draws in one of the ways that samplers of users do."""

    def __init__(self, way: str, generator: torch.Generator | None = None) -> None:
        self.way, self.generator = way, generator
        self.rng, self.shuffler = np.random.default_rng(0), random.Random(2)
        self.order = list(range(20))
        self.calls: int | None = None
        self.kept = iter(()) if way == "kept" else None

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        if self.way == "at once":
            return iter(torch.randperm(20, generator=self.generator).tolist())
        if self.way == "numpy":
            return iter(self.rng.permutation(20).tolist())
        if self.way == "in place":
            self.shuffler.shuffle(self.order)
            return iter(self.order)
        return self._lazily()

    def _lazily(self) -> Iterator[int]:
        if self.way == "counting":
            self.calls = (self.calls or 0) + 1
            own = torch.Generator().manual_seed(self.calls)
            yield from torch.randperm(20, generator=own).tolist()
        elif self.way == "endless":
            while True:
                yield from torch.randperm(20, generator=self.generator).tolist()
        else:
            for _ in range(20):
                yield int(torch.randint(20, (), generator=self.generator))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for i in range(24):
            yield DATA[int(torch.randint(20, ()))][0], i % 3


class Custom:
    """No loader of torch's; endless or not."""

    def __init__(self, endless: bool) -> None:
        self.endless = endless

    def __iter__(self) -> Iterator[Any]:
        while True:
            for rows in torch.randperm(20).split(6):
                yield [part[rows] for part in DATA.tensors]
            if not self.endless:
                return


class Stateful:
    """Draws an order once more when it continues."""

    def __init__(self, lazily: bool) -> None:
        self.lazily = lazily
        self.order, self.place, self.loaded = torch.arange(20), 0, False

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.place, self.loaded = state["order"], state["place"], True

    def __iter__(self) -> Iterator[Any]:
        return self._lazily() if self.lazily else self._from(torch.randperm(20))

    def _lazily(self) -> Iterator[Any]:
        yield from self._from(torch.randperm(20))

    def _from(self, order: torch.Tensor) -> Iterator[Any]:
        if not self.loaded:
            self.order, self.place = order, 0
        self.loaded = False
        while self.place < 20:
            rows = self.order[self.place : self.place + 6]
            self.place += 6
            yield [part[rows] for part in DATA.tensors]


def sampled(sampler: Callable[[], Any], data: Any = DATA, **settings: Any) -> Callable[[], Any]:
    return lambda: DataLoader(data, 6, sampler=sampler(), **settings)


SAMPLERS: dict[str, Callable[[], Any]] = {
    way: lambda way=way: Ordered(way)
    for way in ("at once", "numpy", "in place", "counting", "endless", "each")
} | {
    "endless, own": lambda: Ordered("endless", seeded()),
    "at once, own": lambda: Ordered("at once", seeded()),
    "replacement": lambda: RandomSampler(DATA, True, 50),
    "replacement, own": lambda: RandomSampler(DATA, True, 50, generator=seeded()),
    "long, own": lambda: RandomSampler(DATA, num_samples=50, generator=seeded()),
    "weighted": lambda: WeightedRandomSampler([1.0] * 20, 20),
}
LOADERS: dict[str, Callable[[], Any]] = {
    **{name: sampled(make) for name, make in SAMPLERS.items()},
    "noisy, endless": sampled(SAMPLERS["endless"], NOISY),
    "noisy, in workers": sampled(SAMPLERS["endless"], NOISY, num_workers=2),
    "each, in workers": sampled(SAMPLERS["each"], num_workers=1, persistent_workers=True),
    "batches": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(Ordered("endless"), 6, drop_last=True)
    ),
    "stream": lambda: DataLoader(Stream(), 6),
    "custom": lambda: Custom(False),
    "custom, endless": lambda: Custom(True),
    "stateful, at once": lambda: Stateful(False),
}


def torchdata(kind: str, sampler: str, data: Any = DATA, workers: int = 0) -> Any:
    """One of torchdata's loaders."""
    if kind == "nodes":
        nodes = pytest.importorskip("torchdata.nodes")
        rows = nodes.Mapper(nodes.SamplerWrapper(SAMPLERS[sampler]()), data.__getitem__)
        collate = torch.utils.data.default_collate
        return nodes.Loader(nodes.Mapper(nodes.Batcher(rows, 6, drop_last=False), collate))
    module = pytest.importorskip("torchdata.stateful_dataloader")
    order = {"shuffle": True} if sampler == "shuffle" else {"sampler": SAMPLERS[sampler]()}
    return module.StatefulDataLoader(data, 6, num_workers=workers, **order)


for each in (
    "at once",
    "at once, own",
    "numpy",
    "counting",
    "replacement",
    "weighted",
    "long, own",
):
    for which in ("nodes", "DataLoader"):
        LOADERS[f"torchdata {which}: {each}"] = lambda w=which, e=each: torchdata(w, e)
LOADERS["torchdata DataLoader: shuffle"] = lambda: torchdata("DataLoader", "shuffle")
LOADERS["torchdata DataLoader, noisy"] = lambda: torchdata("DataLoader", "shuffle", NOISY)
LOADERS["torchdata nodes, noisy"] = lambda: torchdata("nodes", "replacement", NOISY)
LOADERS["torchdata workers"] = lambda: torchdata("DataLoader", "shuffle", DATA, 1)

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def rows(source: BatchSource, number: int) -> list[Any]:
    """Draw batches, and random numbers between them as dropout does."""
    found = []
    for _ in range(number):
        parts = [source.draw(i, CPU)[0].tolist() for i in range(len(source.loaders))]
        found.append((parts, torch.rand(3).tolist()))
    return found


def assert_goes_on(make: Callable[[], Any], before: int, match: str | None = None) -> bool:
    seed_all(0)
    made = make()
    sources = [BatchSource("p", list(made) if isinstance(made, tuple) else [made], lambda: None)]
    rows(sources[0], before)
    if match is None:
        saved = [to_plain(r.position(), "It") for r in sources[0].readings]
    else:
        with pytest.warns(UserWarning, match=rf"^Loader 0 of problem 'p' .*{match}"):
            saved = [to_plain(r.position(), "It") for r in sources[0].readings]
    state = RandomState(CPU)
    expected = rows(sources[0], 6)
    seed_all(0)
    made = make()
    seed_all(1)
    loaders = list(made) if isinstance(made, tuple) else [made]
    sources.append(BatchSource("p", loaders, lambda: None))
    for index, position in enumerate(saved):
        sources[1].readings[index]._warned = True
        sources[1].go_to(index, from_plain(position, CPU), CPU)
    state.restore()
    found = rows(sources[1], 6)
    for source in sources:
        for reading in source.readings:
            reading.iterator = None
    return found == expected and sources[0].epochs == sources[1].epochs


@pytest.mark.parametrize("before", [2, 4, 7])
@pytest.mark.parametrize("name", [n for n in LOADERS if "workers" not in n])
def test_what_is_drawn_after_resuming_is_the_same(name: str, before: int) -> None:
    assert assert_goes_on(LOADERS[name], before)


@pytest.mark.slow
@pytest.mark.parametrize("before", [2, 4, 6])
@pytest.mark.parametrize("name", [n for n in LOADERS if "workers" in n])
def test_with_workers(name: str, before: int) -> None:
    assert assert_goes_on(LOADERS[name], before)


@pytest.mark.parametrize("way", ["shuffle", "replacement", "endless"])
@pytest.mark.parametrize("before", [1, 3, 4, 5])
def test_two_loaders_with_one_generator(way: str, before: int) -> None:
    def make() -> tuple[Any, Any]:
        one = seeded()
        found = []
        for size in (6, 5):
            sampler: Any = {
                "shuffle": RandomSampler(DATA, generator=one),
                "replacement": RandomSampler(DATA, True, 50, generator=one),
                "endless": Ordered("endless", one),
            }[way]
            found.append(DataLoader(DATA, size, sampler=sampler, generator=one))
        return found[0], found[1]

    assert assert_goes_on(make, before)


DOUBTFUL: dict[str, tuple[Callable[[], Any], str]] = {
    "kept": (sampled(lambda: Ordered("kept")), r"Ordered\.kept, an iterator that is kept"),
    "lazily": (lambda: Stateful(True), "type Stateful draws random numbers in a generator"),
    "StatefulDataLoader": (
        lambda: torchdata("DataLoader", "endless"),
        "takes its order from Ordered, which has no state_dict",
    ),
    "nodes": (
        lambda: torchdata("nodes", "endless"),
        "takes its order from Ordered, which has no state_dict",
    ),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_may_differ_is_named_when_it_is_saved(name: str) -> None:
    make, match = DOUBTFUL[name]
    assert_goes_on(make, 5, match)


@pytest.mark.slow
def test_random_streams_of_workers_are_named_when_they_are_saved() -> None:
    assert_goes_on(
        lambda: torchdata("DataLoader", "shuffle", NOISY, 1), 2, "with workers, which does not save"
    )


def test_more_draws_than_are_kept_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaweight.problems.data.draw_record.LIMIT", 2)
    assert_goes_on(sampled(SAMPLERS["each"]), 4, "has drawn random numbers within an epoch")


class Net(ImplicitProblem):
    def training_step(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1])


def trained(loader: Any, steps: int, seed: int, resume: bool = False, **settings: Any) -> Any:
    """Train a network with dropout, and return its weight."""
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    seed_all(seed)
    made = loader()
    level = Net("p", None, net, torch.optim.SGD(net.parameters(), 0.3), train_data_loader=made)
    Engine([level], EngineConfig(train_iters=steps, strategy="cpu", **settings)).run(
        resume="auto" if resume else None
    )
    return net[0].weight.detach()


def prepared(seedable: bool = False) -> Any:
    accelerate = pytest.importorskip("accelerate")
    forget_accelerator()
    settings = accelerate.utils.DataLoaderConfiguration(use_seedable_sampler=seedable)
    own = accelerate.Accelerator(cpu=True, dataloader_config=settings)
    return own.prepare(DataLoader(DATA, 6, shuffle=True))


ENGINES: dict[str, Callable[[], Any]] = {
    "prepared": prepared,
    "prepared, seedable": lambda: prepared(seedable=True),
    "endless": LOADERS["endless"],
    "noisy": sampled(SAMPLERS["at once"], NOISY),
    "stateful": LOADERS["stateful, at once"],
    "nodes": lambda: torchdata("nodes", "weighted"),
    "StatefulDataLoader": lambda: torchdata("DataLoader", "shuffle"),
}


@pytest.mark.parametrize("stop", [3, 4, 6])
@pytest.mark.parametrize("name", ENGINES)
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_was_not(
    name: str, stop: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make = ENGINES[name]
    request.addfinalizer(forget_accelerator)
    # The uninterrupted run saves nothing.
    expected = trained(make, 9, 1)
    saving: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_failure": "raise"}
    trained(make, stop, 1, checkpoint_step=2, **saving)
    assert torch.equal(trained(make, 9, 7, resume=True, **saving), expected)
