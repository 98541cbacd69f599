"""What objects of users and other packages raise while they are saved ends a run only if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from metaweight.engines.loggers import Logger
from support.small import Point, numbers, problem, single

from metaweight import CheckpointError, Engine, EngineConfig, Env, Hook

from .test_hook import listening, steps


class Failing:
    """Raises when it is asked for its state from the third step on."""

    step = 0

    def state_dict(self) -> dict[str, Any]:
        if Failing.step >= 3:
            raise AttributeError("no attribute 'dl_state_dict'")
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Loader(Failing):
    def __iter__(self) -> Any:
        return iter(numbers(1.0, 2.0, 3.0))


class Scheduler(Failing):
    def step(self) -> None:
        pass


class FailingHook(Failing, Hook):
    pass


class FailingEnv(Env):
    def state_dict(self) -> dict[str, Any]:
        return Failing.state_dict(Failing())

    def load_state_dict(self, state: Any) -> None:
        pass


class Unplain(Failing):
    def __iter__(self) -> Any:
        return iter(numbers(1.0, 2.0, 3.0))

    def state_dict(self) -> dict[str, Any]:
        return {"rng": object()} if Failing.step >= 3 else {}


class Counting(Hook):
    only_shows = True

    def iteration_end(self, engine: Engine) -> None:
        Failing.step = engine.global_step


class LosingItsPlace(Logger):
    def log(self, *args: Any) -> None:
        pass

    def position(self) -> dict[str, Any]:
        return Failing.state_dict(Failing())


def build(culprit: str, folder: Path, policy: str) -> Engine:
    Failing.step = 0
    net = Point(0.0)
    level = problem(module=net, data=Loader() if culprit == "loader" else numbers(1.0, 2.0, 3.0))
    if culprit == "unplain":
        level.train_data_loader = Unplain()
    if culprit == "scheduler":
        level.scheduler = Scheduler()
    if culprit == "problem":
        level.state_dict = lambda: {
            **type(level).state_dict(level),
            **Failing.state_dict(Failing()),
        }
    hooks = [Counting(), *([FailingHook()] if culprit == "hook" else [])]
    env = FailingEnv() if culprit == "env" else None
    config = EngineConfig(
        train_iters=5,
        strategy="cpu",
        checkpoint_dir=folder,
        checkpoint_step=1,
        checkpoint_failure=policy,
        keep_last=None,
    )
    engine = Engine([level], config, env=env, hooks=hooks)
    if culprit == "logger":
        engine.logger.loggers = (LosingItsPlace(),)
    return engine


CULPRITS = {
    "loader": "Loader 0 of problem 'chase' could not be saved: AttributeError: no attribute 'dl",
    "unplain": r"Loader 0 of problem 'chase'\['own'\]\['rng'\] cannot be saved",
    "scheduler": "The state of problem 'chase' could not be saved: AttributeError",
    "problem": "The state of problem 'chase' could not be saved: AttributeError",
    "hook": "Hook FailingHook could not be saved: AttributeError",
    "env": "The environment could not be saved: AttributeError",
    "logger": "a logger could not tell its position: AttributeError",
}


@pytest.mark.parametrize("culprit", CULPRITS)
def test_what_raises_while_saving_obeys_the_setting(culprit: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=CULPRITS[culprit]):
        build(culprit, tmp_path / "a", "raise").run()
    engine = build(culprit, tmp_path / "b", "warn")
    with listening() as said:
        engine.run()
    assert engine.global_step == 5
    # At steps 3, 4 and 5, and once more at the end.
    assert len(said) == 4
    assert all("The run goes on without it." in text for text in said)
    assert steps(tmp_path / "a") == steps(tmp_path / "b") == [1, 2]
    with pytest.raises(CheckpointError, match=CULPRITS[culprit]):
        engine.save(tmp_path / "c.ckpt")


def test_a_warning_made_an_error_is_no_exception(tmp_path: Path) -> None:
    level = problem(data=iter(numbers(*range(9))))
    engine = single(level, steps=5, checkpoint_dir=tmp_path, checkpoint_step=1)
    with listening() as said:
        engine.run()
    assert "UserWarning: Loader 0 of problem 'chase' is an iterator" in said[0]
