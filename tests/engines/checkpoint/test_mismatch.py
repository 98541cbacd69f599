"""A checkpoint of another program is refused in one sentence, and nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import (
    FEATURES,
    Build,
    Judge,
    Unrolled,
    difference,
    everything,
    loader,
    seed_all,
    two_levels,
    weight_network,
)
from support.small import Chase, numbers, problem, single
from support.zoo import over
from torch import nn

from metaweight import CheckpointError, Engine, EngineConfig, Hook
from metaweight.averaging import EMAHook

QUIET: dict[str, Any] = {"logger_type": "none"}


def saved(build: Build, folder: Path, iterations: int = 3) -> Path:
    seed_all(0)
    engine = build(**QUIET, train_iters=iterations)
    engine.run()
    engine.save(folder / "saved.ckpt")
    return folder / "saved.ckpt"


class Other(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, 3))


def with_module(module: nn.Module) -> Build:
    def build(**more: Any) -> Engine:
        weights = weight_network()
        sgd = torch.optim.SGD(module.parameters(), 0.1)
        low = Unrolled("lower", None, module, sgd, None, loader(20, 1))
        top = Judge(
            "upper", None, weights, torch.optim.Adam(weights.parameters()), None, loader(8, 2, 4)
        )
        return over(top, low, **more)

    return build


def alone(**more: Any) -> Engine:
    engine: Engine = single(problem(), **{"steps": more.pop("train_iters", 3), **more})
    return engine


OTHERS: dict[str, tuple[Build, str]] = {
    "other problems": (alone, r"problems are upper; lower below upper, and here they are chase;"),
    "another module": (
        with_module(Other(8)),
        r"the module of problem 'lower' it has 1\.weight, 1\.bias, 1\.running_mean that the",
    ),
    "another optimizer": (
        two_levels(optimizer=torch.optim.AdamW),
        "the optimizer of problem 'lower' was SGD and is AdamW here; build the program",
    ),
    "other parameter groups": (
        two_levels(
            optimizer=lambda p: torch.optim.SGD(
                [{"params": [q]} for q in p], lr=0.1, momentum=0.9, weight_decay=1e-3
            )
        ),
        "the parameter groups of the optimizer of problem 'lower' was",
    ),
    "a scheduler": (
        two_levels(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3)),
        "the scheduler of problem 'lower' was None and is StepLR here",
    ),
    "another precision": (
        two_levels(lower={"precision": "fp16"}),
        "the loss scaler of problem 'lower' was False and is True here",
    ),
    "another hook": (
        two_levels(hooks=lambda: [EMAHook("lower")]),
        "its hooks are none, and here EMAHook; give the engine the same ones",
    ),
    "an early stop": (two_levels(early_stopping=True), "its hooks are none, and here EarlyStop"),
    "a loader without a state": (
        two_levels(data=lambda: [(torch.zeros(4, FEATURES), torch.zeros(4).long())]),
        "'lower' had 1 loaders, 1 of them with a state_dict, and here has 1, 0 with one;",
    ),
    "more samples": (
        two_levels(data=lambda: loader(24, 1)),
        r"A state of a loader with .*'samples': 20.*was given to one with .*24",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_program_is_refused_and_stays_as_it_is(name: str, tmp_path: Path) -> None:
    path = saved(two_levels(), tmp_path)
    build, message = OTHERS[name]
    seed_all(5)
    for engine in (build(**QUIET), build(**QUIET, train_iters=2)):
        if engine.train_iters == 2:
            engine.run()
        before = everything(engine)
        with pytest.raises(CheckpointError, match=message) as error:
            engine.load(path)
        assert str(path) in str(error.value)
        assert not difference(before, everything(engine))
        assert not engine.run_state.resumed


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    path = saved(with_module(Other(8)), tmp_path)
    engine = with_module(Other(9))(**QUIET)
    with pytest.raises(CheckpointError, match=r"'0\.weight' in the module .* was \(8, 5\) float32"):
        engine.load(path)
    engine = with_module(Other(8).double())(**QUIET)
    with pytest.raises(CheckpointError, match=r"was \(8, 5\) float32 and is \(8, 5\) float64 here"):
        engine.load(path)


@pytest.mark.parametrize("iterations", [2, 3])
def test_settings_of_loops_may_change_between_loops_only(iterations: int, tmp_path: Path) -> None:
    path = saved(two_levels(Unrolled, lower={"unroll_steps": 2}), tmp_path, iterations)
    engine = two_levels(Unrolled, lower={"unroll_steps": 4})(**QUIET)
    if iterations == 2:
        engine.run(resume=path)
        return
    with pytest.raises(CheckpointError, match="settings of problem 'lower', saved inside a loop"):
        engine.load(path)


class Stubborn(Hook):
    """Refuses any state but its own; the last thing to be loaded of all hooks."""

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.refuse:
            self.refuse = False
            raise RuntimeError("not this one")


@pytest.mark.parametrize("iterations", [0, 4, 5])
def test_a_hook_that_refuses_its_state_leaves_all_else_unchanged(
    iterations: int, tmp_path: Path
) -> None:
    def build(refuse: bool) -> Build:
        return two_levels(
            Unrolled,
            lower={"unroll_steps": 2, "gradient_accumulation": 2},
            hooks=lambda: [EMAHook("lower"), Stubborn(refuse)],
            roll_back=True,
        )

    path = saved(build(False), tmp_path, 3)
    seed_all(1)
    engine = build(True)(**QUIET, train_iters=iterations)
    engine.run()
    before = everything(engine)
    with pytest.raises(CheckpointError, match=r"RuntimeError: not this one.*nothing was changed"):
        engine.load(path)
    assert not difference(before, everything(engine))
    # And goes on as if nobody had tried.
    seed_all(1)
    other = build(False)(**QUIET, train_iters=iterations)
    other.run()
    for e in (engine, other):
        seed_all(3)
        e.train_iters = 4
        e.run()
    assert not difference(everything(other), everything(engine))


class Local:
    """An object that no file may hold."""


def test_state_that_is_no_plain_data_is_refused_by_its_name(tmp_path: Path) -> None:
    class Keeping(Hook):
        def state_dict(self) -> dict[str, Any]:
            return {"kept": [1, Local()]}

    engine = single(problem(), hooks=[Keeping()])
    message = r"Hook Keeping\['kept'\]\[1\] cannot be saved, because it is of type Local; make it"
    with pytest.raises(CheckpointError, match=message):
        engine.save(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_saving_amid_a_step_or_after_a_broken_one_is_refused(tmp_path: Path) -> None:
    class Eager(Hook):
        def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
            engine.save(tmp_path / "a.ckpt")

    engine = single(problem(), hooks=[Eager()])
    engine.save(tmp_path / "start.ckpt")
    with pytest.raises(CheckpointError, match="asked for inside a step"):
        engine.run()
    with pytest.raises(CheckpointError, match="after one that ended with an exception"):
        engine.save(tmp_path / "a.ckpt")
    engine.load(tmp_path / "start.ckpt")
    engine.save(tmp_path / "a.ckpt")


def test_saving_in_a_hook_between_steps_resumes_exactly(tmp_path: Path) -> None:
    class Saver(Hook):
        def iteration_end(self, engine: Engine) -> None:
            engine.save(tmp_path / f"{engine.global_step}.ckpt")

    build = two_levels(hooks=lambda: [Saver(), EMAHook("lower", 0.9)])
    seed_all(0)
    whole = build(**QUIET)
    whole.run()
    resumed = build(**QUIET)
    # Before the moving average was updated, and before the validation of this step.
    resumed.run(resume=tmp_path / "4.ckpt")
    assert not difference(everything(whole), everything(resumed))


def test_saving_in_a_validation_resumes_with_that_validation(tmp_path: Path) -> None:
    build = two_levels(early_stopping=True, engine=Saving)
    seed_all(0)
    Saving.path = tmp_path / "valid.ckpt"
    whole = build(log_dir=tmp_path / "whole")
    whole.run()
    Saving.path = None
    resumed = build(log_dir=tmp_path / "whole")
    resumed.run(resume=tmp_path / "valid.ckpt")
    assert not difference(everything(whole), everything(resumed))


class Saving(Engine):
    path: Path | None = None

    def validation(self) -> dict[str, float]:
        if type(self).path is not None and self.global_step == 4:
            self.save(type(self).path)
        return {"loss": float(self.lower.module[0].weight.detach().sum())}


def test_an_environment_with_a_state_is_saved(tmp_path: Path) -> None:
    from metaweight import Env

    class World(Env):
        time = 0

        def state_dict(self) -> dict[str, int]:
            return {"time": self.time}

        def load_state_dict(self, state: Mapping[str, int]) -> None:
            self.time = state["time"]

    def build() -> Engine:
        return Engine([problem(Chase, data=numbers(1.0))], EngineConfig(train_iters=1), env=World())

    engine = build()
    engine.env.time = 5
    engine.save(tmp_path / "a.ckpt")
    other = build()
    other.load(tmp_path / "a.ckpt")
    assert other.env.time == 5


def test_load_puts_the_next_run_where_the_saved_one_stood(tmp_path: Path) -> None:
    path = saved(two_levels(), tmp_path, 3)
    engine = two_levels()(**QUIET)
    engine.load(path)
    assert (engine.global_step, engine.run_state.iteration, engine.lower.count) == (3, 3, 3)
    engine.run()
    assert engine.global_step == 9
    # A further run is one of its own.
    engine.run()
    assert engine.global_step == 18
