"""What users get wrong about one problem, when they make it or change it: refused at once, by name,
and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bad_input import Point, Row, assert_refused, bilevel, numbers, problem
from support.small import single
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import TensorDataset

from metaweight import (
    CheckpointError,
    ConfigurationError,
    DataError,
    Engine,
    EngineConfig,
    GraphError,
)

CPU = EngineConfig(strategy="cpu", train_iters=1)


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def made(**settings: Any) -> Callable[[Any], object]:
    """Construct a problem named "a" from its settings."""
    return lambda _: problem(name=settings.pop("name", "a"), **settings)


def part(error: type[Exception], words: str, **settings: Any) -> Row:
    return Row(error, words, made(**settings))


CONSTRUCTING = {
    "module: text": part(
        ConfigurationError, "'a' … module='net' … nn.Module", module="net", optimizer=None
    ),
    "module: class": part(
        ConfigurationError,
        "'a' … class Linear … rather than its class",
        module=nn.Linear,
        optimizer=None,
    ),
    "module: function": part(
        ConfigurationError, "'a' … function … nn.Module", module=sgd, optimizer=None
    ),
    "module: without shapes": part(
        ConfigurationError,
        "'weight' … 'a' … call the module",
        module=nn.LazyLinear(1),
        optimizer=None,
    ),
    "optimizer: text": part(
        ConfigurationError, "'a' … optimizer='sgd' … torch optimizer", optimizer="sgd"
    ),
    "optimizer: class": part(
        ConfigurationError, "'a' … class SGD … rather than its class", optimizer=torch.optim.SGD
    ),
    "scheduler: text": part(
        ConfigurationError, "'a' … scheduler='cosine' … StepLR", scheduler="cosine"
    ),
    "scheduler: class": part(
        ConfigurationError, "'a' … class StepLR … rather than its class", scheduler=StepLR
    ),
    "scheduler: of another optimizer": part(
        ConfigurationError,
        "StepLR of problem 'a' … another optimizer … configure_scheduler",
        scheduler=StepLR(sgd(Point(0.0)), 1),
    ),
    "scheduler: plateau of another optimizer": part(
        ConfigurationError,
        "ReduceLROnPlateau of problem 'a' … another optimizer",
        scheduler=ReduceLROnPlateau(sgd(Point(0.0))),
    ),
    "loader: number": part(DataError, "Loader 0 of problem 'a' is 5 … DataLoader", data=5),
    "loader: text": part(
        DataError, "Loader 0 of problem 'a' is 'train' … DataLoader", data="train"
    ),
    "loader: class": part(
        DataError, "Loader 0 of problem 'a' is the class list … DataLoader", data=list
    ),
    "loader: dictionary": part(
        DataError, "Loader 0 of problem 'a' is {'train' … tuple", data={"train": []}
    ),
    "loader: second of a tuple": part(
        DataError, "Loader 1 of problem 'a' is 5", data=(numbers(1.0), 5)
    ),
    "loader: no loaders": part(DataError, "'a' … train_data_loader=() … give one", data=()),
    "loader: data set": part(
        DataError, "'a' … TensorDataset … DataLoader(dataset", data=TensorDataset(torch.ones(4, 1))
    ),
    "config: dictionary": part(ConfigurationError, "'a' … config={} … Config", config={}),
    "config: an engine's": part(
        ConfigurationError, "'a' … EngineConfig( … give a Config", config=CPU
    ),
    "name: number": part(ConfigurationError, "name=3 … identifier", name=3),
    "name: empty": part(ConfigurationError, "name='' … identifier", name=""),
    "name: two words": part(ConfigurationError, "name='two words' … identifier", name="two words"),
    "name: None": part(ConfigurationError, "name=None … identifier", name=None),
    "name: keyword": part(ConfigurationError, "name='class' … identifier", name="class"),
    "name: private": part(ConfigurationError, "name='_a' … underscore", name="_a"),
    "device: unknown": part(ConfigurationError, "'a' … device='gpu7' … 'cuda:1'", device="gpu7"),
    "device: object": part(ConfigurationError, "'a' … device=[] … 'cuda:1'", device=[]),
    "device: not there": part(
        ConfigurationError, "'a' … device='cuda:77' … GPUs", device="cuda:77"
    ),
}


def engine() -> Engine:
    built = bilevel(steps=1)
    built.run()
    return built


def endless() -> Engine:
    built = engine()
    built.train_iters = "x"
    return built


def change(error: type[Exception], words: str, act: Callable[[Any], object]) -> Row:
    return Row(error, words, act, engine)


CHANGING = {
    "set_module": change(
        ConfigurationError, "'inner' … module='x'", lambda e: e.inner.set_module("x")
    ),
    "set_optimizer": change(
        ConfigurationError, "'inner' … optimizer='x'", lambda e: e.inner.set_optimizer("x")
    ),
    "set_scheduler": change(
        ConfigurationError,
        "'inner' … another optimizer",
        lambda e: e.inner.set_scheduler(StepLR(sgd(Point(0.0)), 1)),
    ),
    "set_train_data_loader": change(
        DataError, "Loader 0 of problem 'inner' is 3", lambda e: e.inner.set_train_data_loader(3)
    ),
    "set_train_data_loader: index": change(
        DataError, "idx='x' … 'inner' … 1 loader", lambda e: e.inner.set_train_data_loader([], "x")
    ),
    "set_dependency": change(
        GraphError, "names the problem 3 … list it", lambda e: e.set_dependency({"u2l": {3: [4]}})
    ),
    "upper_update_every: another's problem": change(
        GraphError,
        "upper_update_every … (outer, inner)",
        lambda e: e.upper_update_every(problem(), 2),
    ),
    "upper_update_every: never": change(
        ValueError,
        "'inner' … every 0 loops … 1 or more",
        lambda e: e.upper_update_every(e.inner, 0),
    ),
    "check_hypergradient": change(
        ConfigurationError, "tolerance=-1 … above 0", lambda e: e.check_hypergradient(-1)
    ),
    "state of no problem": change(
        CheckpointError,
        "'inner' … received [] … 'module' and 'optimizer'",
        lambda e: e.inner.load_state_dict({}),
    ),
    "state of other shapes": change(
        CheckpointError,
        "'inner' … 'w' is of shape (2,) there and of shape (1,) here",
        lambda e: e.inner.load_state_dict(single(problem(start=(1.0, 2.0))).chase.state_dict()),
    ),
    "train_iters": Row(ConfigurationError, "train_iters='x' … integer", lambda e: e.run(), endless),
}

TABLE = {**{f"given {name}": row for name, row in CONSTRUCTING.items()}, **CHANGING}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_by_name_and_nothing_changes(name: str) -> None:
    assert_refused(TABLE[name])
