"""The average of a problem in a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small import Inner, Outer, Point, bilevel, numbers, problem, single
from torch import Tensor

from metaweight import Config, ConfigurationError, Engine, Hook, ImplicitProblem
from metaweight.averaging import EMAHook

BETA = 0.5


class Seen(Hook):
    """Writes down the parameters of a problem after each of its steps and each iteration."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.after: list[Tensor] = []
        self.settled: list[Tensor] = []

    def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
        if problem.name == self.name:
            self.after.append(problem.module.w.detach().clone())

    def iteration_end(self, engine: Engine) -> None:
        self.settled.append(getattr(engine, self.name).module.w.detach().clone())


def averaged(start: float, points: list[Tensor]) -> Tensor:
    average = torch.tensor([start], dtype=torch.float64)
    for point in points:
        average = BETA * average + (1 - BETA) * point
    return average


def average(hook: EMAHook) -> Tensor:
    found: Tensor = hook.ema.state_dict()["parameters"]["w"]
    return found


def close(left: Tensor, right: Tensor) -> None:
    """A few roundings in double precision."""
    torch.testing.assert_close(left, right, rtol=1e-14, atol=0)


@pytest.mark.parametrize("by_name", [True, False])
def test_every_optimizer_step_is_averaged(by_name: bool) -> None:
    chase, seen = problem(), Seen("chase")
    hook = EMAHook("chase" if by_name else chase, BETA)
    single(chase, steps=4, hooks=[hook, seen]).run()
    assert hook.ema.step == 4
    close(average(hook), averaged(0.0, seen.after))


def test_an_accumulation_counts_once() -> None:
    seen, hook = Seen("chase"), EMAHook("chase", BETA)
    chase = problem(data=numbers(1.0, 2.0), config=Config(gradient_accumulation=3))
    engine = single(chase, steps=8, hooks=[hook, seen])
    engine.run()
    assert hook.ema.step == 2
    close(average(hook), averaged(0.0, [seen.after[2], seen.after[5]]))


def test_steps_that_the_loss_scaler_refuses_do_not_count() -> None:
    seen, hook = Seen("chase"), EMAHook("chase", BETA)
    config = Config(precision="fp16", initial_dynamic_scale=64.0)
    data = [batch.float() for batch in numbers(1.0, 1e38, 2.0)]
    chase = problem(module=Point(3.0).float(), data=data, config=config)
    single(chase, steps=3, hooks=[hook, seen]).run()
    assert hook.ema.step == 2
    assert torch.equal(seen.after[1], seen.after[0])
    expected = averaged(3.0, [seen.after[0], seen.after[2]]).float()
    torch.testing.assert_close(average(hook), expected, rtol=1e-6, atol=0)


def test_upper_problems_are_averaged_when_they_step() -> None:
    seen, hook = Seen("outer"), EMAHook("outer", BETA)
    bilevel(inner_config=Config(unroll_steps=2), steps=6, hooks=[hook, seen]).run()
    assert len(seen.after) == hook.ema.step == 3
    close(average(hook), averaged(0.5, seen.after))


def test_steps_that_are_rolled_back_do_not_count() -> None:
    seen, hook = Seen("inner"), EMAHook("inner", BETA)
    config = Config(unroll_steps=3, warmup_steps=3)
    engine = bilevel(inner_config=config, steps=9, roll_back=True, hooks=[hook, seen])
    engine.run()
    # Three steps of the warm-up stand; then every third is what remains of a loop.
    stands = [*seen.settled[:3], seen.settled[5], seen.settled[8]]
    assert not torch.equal(seen.settled[5], seen.after[5])
    assert hook.ema.step == 5
    close(average(hook), averaged(0.0, stands))


def test_a_problem_stepped_by_hand_is_averaged_before_its_next_step() -> None:
    chase, hook = problem(), EMAHook("chase", BETA)
    single(chase, hooks=[hook])
    chase.step()
    first = chase.module.w.detach().clone()
    assert hook.ema.step == 0
    chase.step()
    assert hook.ema.step == 1
    close(average(hook), averaged(0.0, [first]))


class Consistent(ImplicitProblem):
    """``0.5 |w - teacher|² + outer · w``, with the teacher of a hook."""

    hook: EMAHook

    def training_step(self, batch: Any) -> Tensor:
        self.seen = [*getattr(self, "seen", []), self.hook.teacher().w.item()]
        w = self.module()
        return 0.5 * ((w - self.hook.teacher()()) ** 2).sum() + (self.outer() * w).sum()


def test_a_hypergradient_finds_the_teacher_that_the_step_had() -> None:
    hook = EMAHook("inner", BETA)
    inner = problem(Consistent, "inner", start=(1.0,), config=Config(type="unroll"))
    inner.hook = hook
    outer = problem(Outer, "outer", start=(0.5,), data=numbers(3.0))
    engine = bilevel(inner=inner, outer=outer, hooks=[hook], steps=2)
    engine.run()
    assert len(inner.seen) > 2
    replays = len(inner.seen) // 2
    # Both evaluations of the first step see w_0 = 1; those of the second see the mean of w_0, w_1.
    w_1 = 1.0 - 0.1 * 0.5
    assert inner.seen[:replays] == [1.0] * replays
    assert inner.seen[replays:] == pytest.approx([(1 + w_1) / 2] * replays, abs=1e-14)


class Validating(Engine):
    """Reads the parameter of the first problem."""

    def validation(self) -> dict[str, float]:
        self.found = [*getattr(self, "found", []), self.problems[0].module.w.item()]
        return {"w": self.found[-1]}


def test_validation_finds_the_teacher_where_that_is_asked_for() -> None:
    seen, hook = Seen("chase"), EMAHook("chase", BETA, validate_teacher=True)
    engine = single(problem(), engine=Validating, steps=3, valid_step=1, hooks=[hook, seen])
    engine.run()
    expected = [averaged(0.0, seen.after[: n + 1]).item() for n in range(3)]
    assert engine.found == pytest.approx(expected, rel=1e-14)
    assert not hook.ema.is_applied
    plain = single(problem(), steps=3)
    plain.run()
    assert torch.equal(engine.chase.module.w, plain.chase.module.w)


def test_validation_finds_the_student_otherwise() -> None:
    seen, hook = Seen("chase"), EMAHook("chase", BETA)
    engine = single(problem(), engine=Validating, steps=2, valid_step=1, hooks=[hook, seen])
    engine.run()
    assert engine.found == [w.item() for w in seen.after]


def test_a_validation_can_apply_the_teacher_itself() -> None:
    hook = EMAHook("chase", BETA)

    class Both(Engine):
        def validation(self) -> dict[str, float]:
            with hook.applied() as module:
                return {"teacher": module.w.item()}

    class Stats(Hook):
        def after_validation(self, engine: Engine, stats: Any) -> None:
            self.teacher = stats["teacher"]

    stats = Stats()
    single(problem(), engine=Both, steps=1, valid_step=1, hooks=[hook, stats]).run()
    assert stats.teacher == pytest.approx(0.05, rel=1e-14)


def test_the_student_is_back_after_a_validation_that_raised() -> None:
    class Failing(Engine):
        def validation(self) -> dict[str, float]:
            raise RuntimeError("broken")

    hook, seen = EMAHook("chase", BETA, validate_teacher=True), Seen("chase")
    engine = single(problem(), engine=Failing, valid_step=1, hooks=[hook, seen])
    with pytest.raises(RuntimeError, match="broken"):
        engine.run()
    assert not hook.ema.is_applied
    assert torch.equal(engine.chase.module.w, seen.after[0])


@pytest.mark.parametrize("loaded_during_a_run", [True, False])
def test_a_saved_hook_goes_on_identically(loaded_during_a_run: bool) -> None:
    whole = EMAHook("chase", 0.9, warm_up="bias_corrected")
    engine = single(problem(), steps=3, hooks=[whole])
    engine.run()
    saved, place = whole.state_dict(), engine.chase.state_dict()["module"]["w"].clone()
    engine.run()

    resumed = EMAHook("chase", 0.9, warm_up="bias_corrected")
    again = single(problem(start=(7.0,)), steps=3, hooks=[resumed])
    if loaded_during_a_run:
        again.run()
    resumed.load_state_dict(saved)
    with torch.no_grad():
        again.chase.module.w.copy_(place)
    if not loaded_during_a_run:
        assert resumed.state_dict()["ema"] == saved["ema"]
    again.run()
    assert resumed.ema.step == whole.ema.step == 6
    assert torch.equal(average(resumed), average(whole))


def test_an_update_that_was_due_is_made_up_for_after_loading() -> None:
    class Interrupted(Hook):
        def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
            raise KeyboardInterrupt

    hook = EMAHook("chase", BETA)
    with pytest.raises(KeyboardInterrupt):
        single(problem(), hooks=[hook, Interrupted()]).run()
    resumed = EMAHook("chase", BETA)
    resumed.load_state_dict(hook.state_dict())
    single(problem(start=(0.1,)), steps=1, hooks=[resumed]).run()
    assert resumed.ema.step == 2


def test_a_state_from_before_the_first_run_starts_anew() -> None:
    fresh = EMAHook("chase", BETA).state_dict()
    hook = EMAHook("chase", BETA)
    single(problem(), steps=2, hooks=[hook]).run()
    hook.ema.apply_teacher()
    with pytest.raises(ConfigurationError, match="while the teacher is applied"):
        hook.load_state_dict(fresh)
    hook.ema.restore_student()
    hook.load_state_dict(fresh)
    with pytest.raises(ConfigurationError, match="'chase' has no average yet"):
        hook.teacher()


def test_a_module_exchanged_for_one_of_the_same_shape_is_followed() -> None:
    chase, hook = problem(), EMAHook("chase", BETA)
    engine = single(chase, hooks=[hook])
    engine.run()
    other = Point(10.0)
    chase.set_module(other)
    chase.set_optimizer(torch.optim.SGD(other.parameters(), lr=0.1))
    engine.run()
    close(average(hook), averaged(0.05, [other.w.detach()]))
    chase.set_module(Point(1.0, 2.0))
    chase.set_optimizer(torch.optim.SGD(chase.module.parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match=r"of another shape: w \(1,\) now \(2,\)"):
        engine.run()


def test_a_problem_the_engine_does_not_have_is_refused() -> None:
    stranger = problem(name="stranger")
    for given in ("stranger", stranger):
        engine = single(problem(), hooks=[EMAHook(given)])
        with pytest.raises(ConfigurationError, match=r"'stranger', which is not .* \(chase\)"):
            engine.run()


def test_an_average_that_has_not_begun_cannot_be_applied() -> None:
    with pytest.raises(ConfigurationError, match="'chase' has no average yet; it begins with"):
        EMAHook("chase").applied()


def test_the_hook_of_one_problem_leaves_the_others_alone() -> None:
    hook = EMAHook("inner", BETA)
    with_hook = bilevel(steps=5, hooks=[hook])
    with_hook.run()
    without = bilevel(steps=5)
    without.run()
    assert isinstance(with_hook.inner, Inner)
    assert torch.equal(with_hook.inner.module.w, without.inner.module.w)
    assert torch.equal(with_hook.outer.module.w, without.outer.module.w)
    assert hook.ema.step == 5
