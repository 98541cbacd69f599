"""What an engine does with its problems, from construction to the last step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.small import Chase, Inner, Outer, Point, bilevel, numbers, problem, single
from torch import nn

from metaweight import Engine, EngineConfig, Env, GraphError, ImplicitProblem


class NeverRead:
    """A loader that fails as soon as somebody iterates it."""

    def __iter__(self) -> Any:
        raise AssertionError("a loader was started")


def test_problems_reach_each_other_by_name() -> None:
    env = Env()
    engine = bilevel(env=env)
    inner, outer = engine.inner, engine.outer
    assert [engine.problems, engine.leaves] == [[outer, inner], [inner]]
    assert inner.outer is outer
    assert outer.inner is inner
    assert env.inner is inner
    assert env.outer is outer
    assert inner.env is env
    assert (inner.parents, outer.children, inner.leaf) == ([outer], [inner], True)
    assert outer.paths == [[outer, inner, outer]]


def test_calling_a_problem_calls_its_forward() -> None:
    engine = bilevel()
    assert torch.equal(engine.inner.outer(), engine.outer.module.w)


def test_an_unknown_name_says_which_problems_are_visible() -> None:
    engine = bilevel()
    with pytest.raises(AttributeError, match=r"'Inner' object has no attribute 'oter'.*see: outer"):
        _ = engine.inner.oter
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'oter'"):
        _ = engine.oter


def test_construction_reads_no_batch_and_runs_no_step() -> None:
    engine = bilevel(
        inner=problem(Inner, "inner", data=NeverRead()),
        outer=problem(Outer, "outer", data=(NeverRead(), NeverRead())),
    )
    assert engine.global_step == 0
    with pytest.raises(AssertionError, match="a loader was started"):
        engine.run()


def test_without_a_configuration_the_defaults_hold() -> None:
    engine = Engine([problem()])
    assert engine.config == EngineConfig()
    assert engine.train_iters == 50000
    assert engine.valid_step == 500


@pytest.mark.parametrize("name", ["run", "problems", "train_iters", "global_step", "leaves"])
def test_a_name_that_hides_an_attribute_of_the_engine_is_refused(name: str) -> None:
    with pytest.raises(GraphError, match=f"'{name}', which would hide the attribute.*of Engine"):
        single(problem(name=name))


@pytest.mark.parametrize("name", ["module", "training_step", "count", "cfg"])
def test_a_name_that_hides_an_attribute_of_another_problem_is_refused(name: str) -> None:
    with pytest.raises(GraphError, match=f"named '{name}', which would hide"):
        Engine([problem(name="other"), problem(name=name)])


def test_a_name_that_hides_an_attribute_of_the_environment_is_refused() -> None:
    env = Env()
    env.batch = None
    with pytest.raises(GraphError, match="'batch', which would hide the attribute 'batch' of Env"):
        Engine([problem(name="batch")], env=env)


def test_configure_methods_stand_in_for_arguments() -> None:
    class Configured(Chase):
        def configure_module(self) -> nn.Module:
            return Point(0.0)

        def configure_optimizer(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.module.parameters(), lr=0.5)

        def configure_scheduler(self) -> Any:
            return torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.1)

        def configure_train_data_loader(self) -> Any:
            return numbers(1.0)

    configured = Configured("a")
    single(configured, steps=2).run()
    # 0 -> 0.5 at lr 0.5 -> 0.5 + 0.05 * 0.5 at lr 0.05
    assert configured.module.w.item() == pytest.approx(0.525, abs=1e-15)


def test_custom_optimizer_step_needs_no_optimizer() -> None:
    class ByHand(Chase):
        def custom_optimizer_step(self) -> None:
            with torch.no_grad():
                for p in self.trainable_parameters():
                    p.sub_(0.25 * p.grad)

    by_hand = ByHand("a", module=Point(0.0), train_data_loader=numbers(1.0))
    single(by_hand).run()
    assert by_hand.module.w.item() == 0.25


def test_a_second_engine_over_the_same_problems_reads_the_same_loaders() -> None:
    lower = problem(data=(numbers(1.0), numbers(2.0)), cls=Pairs)
    single(lower).run()
    single(lower).run()
    assert lower.module.w.item() == pytest.approx(2 * 0.1 * 3.0, abs=1e-15)


class Pairs(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        first, second = batch
        return -((first + second) * self.module()).sum()


def test_a_second_engine_shows_its_own_problems_and_no_others() -> None:
    first, second, third = (
        problem(name=name, data=numbers(1.0)) for name in ("first", "second", "third")
    )
    Engine([first, second], EngineConfig(strategy="cpu"))
    assert first.second is second
    Engine([first, third], EngineConfig(strategy="cpu"))
    assert first.third is third
    with pytest.raises(AttributeError, match=r"no attribute 'second'.*third"):
        first.second


def test_running_twice_goes_on_counting() -> None:
    seen: list[int] = []

    class Noting(Engine):
        def train_step(self) -> None:
            seen.append(self.global_step)
            super().train_step()

    engine = single(problem(), engine=Noting, steps=3)
    engine.run()
    engine.run()
    assert seen == [1, 2, 3, 4, 5, 6]
    assert engine.chase.count == 6
    assert engine.chase.module.w.item() == pytest.approx(1 - 0.9**6, abs=1e-15)


def test_validation_comes_every_valid_step_in_evaluation_mode_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    modes: list[tuple[int, bool]] = []

    class Validating(Engine):
        def validation(self) -> dict[str, Any]:
            modes.append((self.global_step, self.chase.module.training))
            return {"acc": torch.tensor(0.75), "loss": 0.5}

    engine = single(problem(), engine=Validating, steps=5, valid_step=2)
    with caplog.at_level(logging.INFO, logger="metaweight"):
        engine.run()
    assert modes == [(2, False), (4, False)]
    assert engine.chase.module.training
    assert caplog.messages == [
        "[Validation] [Global Step 2] acc: 0.75 || loss: 0.5",
        "[Validation] [Global Step 4] acc: 0.75 || loss: 0.5",
    ]


def test_training_mode_returns_when_validation_raises() -> None:
    class Failing(Engine):
        def validation(self) -> dict[str, Any]:
            raise RuntimeError("no data")

    engine = single(problem(), engine=Failing, steps=1, valid_step=1)
    with pytest.raises(RuntimeError, match="no data"):
        engine.run()
    assert engine.chase.module.training


def test_stop_ends_a_run_after_the_present_step(caplog: pytest.LogCaptureFixture) -> None:
    class Stopping(Engine):
        def train_step(self) -> None:
            super().train_step()
            if self.global_step == 2:
                self.stop("enough")

    engine = single(problem(), engine=Stopping, steps=10)
    with caplog.at_level(logging.INFO, logger="metaweight"):
        engine.run()
    assert engine.global_step == 2
    assert caplog.messages == ["enough"]
    engine.run()
    assert engine.global_step == 12


def test_a_problem_outside_an_engine_refuses_to_step() -> None:
    with pytest.raises(GraphError, match="'chase' was asked to step but belongs to no engine"):
        problem().step()


def test_describe_lists_neighbours_and_paths() -> None:
    lines = bilevel().describe().splitlines()
    assert lines[0] == "outer: uppers [], lowers ['inner'], paths ['outer -> inner -> outer']"
    assert "inner: uppers ['outer'], lowers [], paths []" in lines
