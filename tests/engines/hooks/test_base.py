"""Moments of a run, in the order others see them."""

from __future__ import annotations

from typing import Any

import pytest
from metaweight.engines.hooks.base import HookList
from support.small import bilevel, numbers, problem, single

from metaweight import Engine, Hook


class Recorder(Hook):
    """Writes down every moment."""

    def __init__(self, moments: list[str] | None = None, tag: str = "") -> None:
        self.moments: list[str] = [] if moments is None else moments
        self.tag = tag

    def note(self, text: str) -> None:
        self.moments.append(self.tag + text)

    def run_start(self, engine: Engine) -> None:
        self.note(f"run start at {engine.global_step}")

    def run_end(self, engine: Engine) -> None:
        self.note(f"run end at {engine.global_step}")

    def before_step(self, engine: Engine, problem: Any) -> None:
        self.note(f"before {problem.name} {problem.count}")

    def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
        self.note(f"after {problem.name} {problem.count}: {result.loss.item():g}")

    def epoch_end(self, engine: Engine, problem: Any) -> None:
        self.note(f"epoch of {problem.name}")

    def iteration_end(self, engine: Engine) -> None:
        self.note(f"iteration {engine.global_step}")

    def before_validation(self, engine: Engine) -> None:
        self.note("before validation")

    def after_validation(self, engine: Engine, stats: Any) -> None:
        self.note(f"validation {stats['acc']}")


class Validating(Engine):
    def validation(self) -> dict[str, float]:
        return {"acc": 0.5}


def test_moments_come_in_order() -> None:
    hook = Recorder()
    bilevel(engine=Validating, steps=1, valid_step=1, hooks=[hook]).run()
    assert hook.moments == [
        "run start at 0",
        "before inner 1",
        "after inner 1: 0.5",
        "before outer 1",
        # 0.5 (0.05 - 3)²
        "after outer 1: 4.35125",
        "iteration 1",
        "before validation",
        "validation 0.5",
        "run end at 1",
    ]


def test_an_epoch_ends_before_the_batch_that_begins_the_next_one() -> None:
    hook = Recorder()
    single(problem(data=numbers(0.0, 0.0)), steps=3, hooks=[hook]).run()
    third = hook.moments.index("before chase 3")
    assert hook.moments[third + 1] == "epoch of chase"
    assert hook.moments.count("epoch of chase") == 1


def test_several_hooks_take_turns_in_the_order_given() -> None:
    moments: list[str] = []
    single(problem(), hooks=[Recorder(moments, "a "), Recorder(moments, "b ")]).run()
    assert moments[::2] == [text.replace("b ", "a ") for text in moments[1::2]]
    assert moments[0].startswith("a ")


def test_configured_hooks_come_before_given_ones() -> None:
    class Measured(Engine):
        def validation(self) -> dict[str, float]:
            return {}

    settings = {"early_stopping": True, "progress": False}
    engine = single(problem(), engine=Measured, hooks=[Recorder()], **settings)
    assert [type(hook).__name__ for hook in engine.hooks.hooks] == ["EarlyStopping", "Recorder"]


def test_the_run_ends_for_hooks_also_after_an_exception() -> None:
    class Failing(Engine):
        def train_step(self) -> None:
            raise RuntimeError("broken")

    hook = Recorder()
    with pytest.raises(RuntimeError, match="broken"):
        single(problem(), engine=Failing, hooks=[hook]).run()
    assert hook.moments == ["run start at 0", "run end at 0"]


def test_a_validation_that_raises_is_followed_by_the_end_of_the_run() -> None:
    class Failing(Engine):
        def validation(self) -> dict[str, float]:
            raise RuntimeError("broken")

    hook = Recorder()
    with pytest.raises(RuntimeError, match="broken"):
        single(problem(), engine=Failing, valid_step=1, hooks=[hook]).run()
    assert hook.moments[-2:] == ["before validation", "run end at 1"]


def test_only_overridden_moments_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyIterations(Hook):
        def __init__(self) -> None:
            self.seen = 0

        def iteration_end(self, engine: Engine) -> None:
            self.seen += 1

    hook = OnlyIterations()
    engine = single(problem(), engine=Validating, steps=2, valid_step=1, hooks=[hook])

    def called(*args: Any) -> None:
        raise AssertionError("a moment nobody joins was called")

    moments = ("run_start", "run_end", "before_step", "after_step")
    for name in (*moments, "before_validation", "after_validation"):
        monkeypatch.setattr(Hook, name, called)
    engine.run()
    assert hook.seen == 2


def test_every_moment_of_a_hook_is_passed_on_by_a_list() -> None:
    public = {name: value for name, value in vars(Hook).items() if not name.startswith("_")}
    moments = {name for name, value in public.items() if callable(value)}
    moments -= {"state_dict", "load_state_dict", "changes_gradients_of"}
    assert moments <= set(vars(HookList))


def test_a_hook_without_state_saves_none_and_loads_any() -> None:
    hook = Hook()
    assert hook.state_dict() == {}
    hook.load_state_dict({"left": "over"})
