"""Surroundings shared by the problems of an engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small import Chase, Point, bilevel, numbers, problem, single
from torch import nn

from metaweight import Engine, EngineConfig, Env, ImplicitProblem


class Tasks(Env):
    """A task sampler as Betty programs write it, without a call to the base class."""

    def __init__(self) -> None:
        self.batch: Any = None
        self.drawn = 0

    def step(self) -> None:
        self.drawn += 1
        self.batch = torch.tensor([float(self.drawn)], dtype=torch.float64)


class FromEnv(Chase):
    def get_batch(self) -> Any:
        return self.env.batch


def from_env() -> Any:
    point = Point(0.0)
    return FromEnv("chase", module=point, optimizer=torch.optim.SGD(point.parameters(), lr=0.5))


class Sampling(Engine):
    def train_step(self) -> None:
        if self.global_step % 2 == 1:
            self.env.step()
        for leaf in self.leaves:
            leaf.step(global_step=self.global_step)


def test_problems_read_their_batches_from_the_environment() -> None:
    env = Tasks()
    lower = from_env()
    Sampling([lower], EngineConfig(train_iters=4, strategy="cpu"), env=env).run()
    assert env.drawn == 2
    # Halfway to 1 twice, then halfway to 2 twice: 0, 0.5, 0.75, 1.375, 1.6875.
    assert lower.module.w.item() == 1.6875


class Learner(ImplicitProblem):
    """MAML's lower level: fitted to the support set, held near the meta-learner."""

    def training_step(self, batch: Any) -> Any:
        support, _ = batch
        pull = ((self.module() - self.meta()) ** 2).sum()
        return ((self.module() - support) ** 2).sum() + pull

    def get_batch(self) -> Any:
        return self.env.batch

    def on_inner_loop_start(self) -> None:
        self.module.load_state_dict(self.meta.module.state_dict())


class Meta(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        _, query = batch
        return ((self.learner() - query) ** 2).sum()

    def get_batch(self) -> Any:
        return self.env.batch


def test_two_levels_share_the_task_of_the_environment() -> None:
    class Pairs(Env):
        def __init__(self) -> None:
            self.batch = tuple(torch.tensor([v], dtype=torch.float64) for v in (1.0, 2.0))

    modules = {"meta": Point(4.0), "learner": Point(0.0)}
    optimizers = {n: torch.optim.SGD(m.parameters(), lr=0.125) for n, m in modules.items()}
    meta = Meta("meta", module=modules["meta"], optimizer=optimizers["meta"])
    learner = Learner("learner", module=modules["learner"], optimizer=optimizers["learner"])
    Engine(
        [meta, learner],
        EngineConfig(train_iters=1, strategy="cpu"),
        {"u2l": {meta: [learner]}, "l2u": {learner: [meta]}},
        env=Pairs(),
    ).run()
    # Learner: from 4, gradient 2 (4 - 1) + 0 = 6, to 3.25. Meta: v = 2 (3.25 - 2) = 2.5, mixed
    # derivative of the pull -2, hypergradient 5, to 4 - 0.125 * 5.
    assert learner.module.w.item() == 3.25
    assert meta.module.w.item() == pytest.approx(3.375, abs=1e-9)


def test_the_environment_knows_the_device_before_problems_are_built() -> None:
    order: list[str] = []

    class Noting(Env):
        def initialize(self) -> None:
            order.append(f"env on {self.device}")

    class Late(Chase):
        def configure_module(self) -> nn.Module:
            order.append(f"module beside {type(self.env).__name__}")
            return Point(0.0)

        def configure_optimizer(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.module.parameters(), lr=0.1)

    late = Late("late", train_data_loader=numbers(1.0))
    Engine([late], EngineConfig(strategy="cpu"), env=Noting())
    assert order == ["env on cpu", "module beside Noting"]


def test_environments_do_not_share_their_problems() -> None:
    first, second = Tasks(), Tasks()
    bilevel(env=first)
    with pytest.raises(AttributeError, match="'Tasks' object has no attribute 'inner'"):
        _ = second.inner


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    env = Env()
    assert not hasattr(env, "batch")
    assert not hasattr(env, "_private")
    with pytest.raises(AttributeError, match="'Env' object has no attribute 'batch'"):
        _ = env.batch


def test_without_an_environment_there_is_none() -> None:
    engine = single(problem())
    assert engine.env is None
    assert engine.chase.env is None
