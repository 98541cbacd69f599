"""What a loss, gradient or hypergradient that is not finite does, by each policy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.checkpoint.state import engine_to_plain
from metaweight.problems import Hypergradient, Product
from metaweight.problems.state.plain_data import from_plain
from support.faulty import Case, reweighted, values
from support.resuming import Jitter, Unrolled, assert_resumes_exactly, samples, two_levels
from support.small import Chase, Inner, Outer, Point, bilevel, numbers, problem, single
from torch import Tensor

from metaweight import (
    Config,
    ConfigurationError,
    Engine,
    Hook,
    HypergradientError,
    NonFinite,
    NonFiniteError,
    Status,
)
from metaweight.averaging import EMAHook
from metaweight.data import TensorLoader

NAN, INF = float("nan"), float("inf")

CASES = {
    "lower": (Case((1.0, NAN, 2.0, -1.0)), 9),
    "infinite": (Case((1.0, -INF, 2.0, -1.0)), 9),
    "upper": (Case((1.0, 2.0, -1.0), (3.0, NAN)), 9),
    "first": (Case((NAN, 2.0, -1.0)), 7),
    "accumulated": (Case((1.0, 2.0, NAN, -1.0, 0.5, 0.7), accumulation=2), 7),
    "upper accumulated": (Case((1.0, 2.0, -1.0, NAN, 0.5), upper_accumulation=2), 8),
    "unrolled": (Case((1.0, NAN, 2.0, -1.0, 0.5), unroll_steps=3, type="unroll"), 7),
    "unrolled, last": (Case((1.0, 2.0, NAN), unroll_steps=3, type="unroll"), 4),
    "unrolled, first": (Case((NAN, 2.0, 1.5), unroll_steps=3, type="unroll"), 4),
    "unrolled, none left": (
        Case((1.0, 2.0, NAN, NAN, 0.5, 0.7), unroll_steps=2, type="unroll"),
        7,
    ),
    "unrolled, accumulated": (
        Case((1.0, 2.0, NAN, 0.3, 0.5), unroll_steps=3, accumulation=2, type="unroll"),
        6,
    ),
    "roll-back": (Case((1.0, NAN, 2.0), type="unroll", roll_back=True), 7),
    "roll-back, unrolled": (
        Case((1.0, 2.0, 0.3, NAN, 0.5), unroll_steps=2, type="unroll", roll_back=True),
        8,
    ),
    "nothing": (Case((1.0, 2.0, -1.0), unroll_steps=2, type="unroll"), 5),
}


def iterations(case: Case, loops: int) -> int:
    return loops * case.unroll_steps * case.accumulation


@pytest.mark.parametrize(("case", "loops"), CASES.values(), ids=CASES)
def test_skipped_steps_are_as_if_they_had_never_been(case: Case, loops: int) -> None:
    """Against the formulas of the program, with the steps left out by hand."""
    hook = NonFinite("skip")
    engine = case.engine(iterations(case, loops), hooks=[hook])
    engine.run()
    *expected, skipped = case.by_hand(loops)
    # Central differences of a quadratic are exact to rounding; nothing else is approximate.
    assert values(engine) == pytest.approx(expected, abs=1e-9)
    assert hook.skipped == skipped


def test_a_hypergradient_through_one_step_waits_for_one() -> None:
    """With two steps a loop and only the second looked at, its loss leaves the upper step out."""
    hook = NonFinite("skip")
    engine = Case((1.0, 2.0, NAN, 0.5), unroll_steps=2).engine(10, hooks=[hook])
    engine.run()
    # Batches (1, 2), (NaN, 0.5), (1, 2), …: the second step of a loop is always good.
    assert hook.skipped == {"inner": 2}
    assert engine.outer.count == 5
    late = Case((1.0, NAN, 2.0, 0.5), unroll_steps=2).engine(10, hooks=[other := NonFinite("skip")])
    late.run()
    assert other.skipped == {"inner": 3, "outer": 3}


class Started(Inner):
    """Each loop starts at twice the upper parameter."""

    def initial_parameters(self) -> dict[str, Tensor]:
        return {"w": 2.0 * self.outer()}


@pytest.mark.parametrize("data", [(1.0, NAN), (NAN, 1.0)])
def test_a_learned_start_is_reached_through_the_steps_that_were_taken(
    data: tuple[float, float],
) -> None:
    config = Config(type="unroll", unroll_steps=2)
    inner = problem(Started, "inner", data=numbers(*data), lr=0.1, config=config)
    engine = bilevel(inner=inner, steps=2, non_finite="skip")
    engine.run()
    # w = 2 θ - 0.1 (2 θ - 1 + θ) from θ = 0.5, judged by 0.5 |w - 3|².
    w = 1.0 - 0.1 * (1.0 - 1.0 + 0.5)
    assert inner.module.w.item() == pytest.approx(w)
    expected = 0.5 - 0.1 * (w - 3.0) * (2.0 - 0.3)
    assert engine.outer.module.w.item() == pytest.approx(expected)


def test_a_reweighted_program_is_as_if_it_had_never_seen_the_batch() -> None:
    """Adam, batch norm and the upper problem included, bit for bit."""
    hook = NonFinite("skip")
    engine = reweighted([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], bad=[2], hooks=[hook])
    engine.run()
    # Where the lower step was left out, the upper one was too, with its batch.
    clean = reweighted([0, 1, 3, 4], [0, 1, 3, 4])
    clean.run()
    assert hook.skipped == {"classifier": 1, "judge": 1}
    assert same(state(engine), state(clean))


def test_an_accumulated_step_drops_its_good_batches_too() -> None:
    config = Config(gradient_accumulation=2)
    hook = NonFinite("skip")
    engine = reweighted([0, 1, 2, 3, 4, 5], [0, 1, 2], bad=[2], hooks=[hook], config=config)
    engine.run()
    clean = reweighted([0, 1, 4, 5], [0, 2], config=config)
    clean.run()
    assert hook.skipped == {"classifier": 1, "judge": 1}
    # The statistics of the good batch stay; nothing else does.
    found, expected = state(engine), state(clean)
    for program in (found, expected):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert program["classifier"]["module"].pop(f"1.{name}").isfinite().all()
    assert same(found, expected)


class Root(Chase):
    """A finite loss with an infinite derivative where ``w`` is the batch."""

    def training_step(self, batch: Any) -> Any:
        return (self.module() - batch).abs().sqrt().sum() + 0.0 * batch.sum()


class Broken(Hypergradient):
    """Not finite at some upper steps."""

    def __init__(self, at: Sequence[int], error: bool = False) -> None:
        self.at, self.error, self.calls = at, error, 0

    def vjp(self, problem: Any, vector: Any, upper_parameters: Any) -> Product:
        self.calls += 1
        bad = self.calls in self.at
        if bad and self.error:
            raise HypergradientError("The solve diverged; damp it.")
        value = NAN if bad else 1.0
        return Product([torch.full_like(t, value) for t in upper_parameters], Status("Broken"))


def broken(**settings: Any) -> Engine:
    method = Broken([3], settings.pop("error", False))
    return bilevel(steps=5, inner_config=Config(type=method), **settings)


PROGRAMS: dict[str, Callable[..., Engine]] = {
    "plain": lambda **s: single(problem(data=numbers(1.0, 2.0, NAN)), steps=5, **s),
    "gradient": lambda **s: single(problem(Root, data=numbers(1.0, 0.5, 2.0)), steps=5, **s),
    "hypergradient": broken,
    "reweighted": lambda **s: reweighted(range(5), range(5), bad=[2], **s),
    "accumulated": lambda **s: reweighted(
        range(6), range(3), bad=[3], config=Config(gradient_accumulation=2), **s
    ),
    "unrolled": lambda **s: Case((1.0, 2.0, 0.5, NAN, 0.3), unroll_steps=2, type="unroll").engine(
        6, **s
    ),
    "upper": lambda **s: Case((1.0, 2.0), (3.0, 2.0, NAN)).engine(5, **s),
}


def state(engine: Engine) -> dict[str, Any]:
    """Modules and optimizers, to be compared."""
    return {
        p.name: copy.deepcopy(
            {
                "module": dict(p.module.state_dict()),
                "optimizer": {i: s for i, s in p.optimizer.state_dict()["state"].items()},
            }
        )
        for p in engine.problems
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


class Watching(Hook):
    """Keeps the state before every step."""

    only_shows = True

    def before_step(self, engine: Engine, problem: Any) -> None:
        self.before = problem.name, problem.count, state(engine)


MESSAGES = {
    "plain": r"The loss of problem 'chase' is nan\. It happened at step 3, global step 3, on the "
    r"batch batch float64 \(1,\), 1 not finite; sha256 [0-9a-f]{12}\. Parameters, buffers and "
    r"optimizer are as they were before the step\. The batch itself holds values that are not "
    r"finite: fix the data; EngineConfig\(non_finite='skip'\) skips such steps\.",
    "gradient": r"The gradient of problem 'chase' is not finite\. It happened at step [0-9], .*"
    r"Lower the learning rate, or use Config\(gradient_clipping=\.\.\.\); Engine",
    "hypergradient": r"The hypergradient of problem 'outer' through 'inner' is not finite\. It "
    r"happened at step 3, global step 3, on the batch batch float64 \(1,\) from 3 to 3, 0 not "
    r"finite; sha256 .*check_hypergradient.*Config\(type=\.\.\.\) of problem 'inner'; Engine",
    "reweighted": r"loss of problem 'classifier' is nan.*step 3, global step 3, .*\[0\] float32 "
    r"\(10, 6\) from -.* to .*, 1 not finite; \[1\] int64 \(10,\) from 0 to 3; sha256",
    "accumulated": r"loss of problem 'classifier' is nan.*step 4, global step 4, ",
    "unrolled": r"loss of problem 'inner' is nan.*step 4, global step 4, ",
    "upper": r"loss of problem 'outer' is nan.*step 3, global step 3, ",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_error_names_the_step_and_changes_nothing(name: str) -> None:
    watching = Watching()
    build = PROGRAMS[name]
    engine = build(hooks=[watching], non_finite="raise")
    if name == "gradient":
        engine.chase.module.w.data.fill_(0.5)
        engine.chase.set_train_data_loader(numbers(0.25, 0.5))
        engine.chase.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(NonFiniteError, match=MESSAGES[name]) as caught:
        engine.run()
    who, step, before = watching.before
    assert (caught.value.problem, caught.value.step) == (who, step)
    assert same(state(engine), before)
    assert all(p.grad is None for q in engine.problems for p in q.module.parameters())


SOUND: dict[str, Callable[..., Engine]] = {
    "plain": lambda **s: single(problem(data=numbers(1.0, 2.0)), steps=5, **s),
    "reweighted": lambda **s: reweighted(range(5), range(5), **s),
    "accumulated": lambda **s: reweighted(
        range(6), range(3), config=Config(gradient_accumulation=2), **s
    ),
    "unrolled": lambda **s: Case((1.0, 2.0, 0.5), unroll_steps=2, type="unroll").engine(6, **s),
    "rolled back": lambda **s: Case(
        (1.0, 2.0, 0.5), unroll_steps=2, type="unroll", roll_back=True
    ).engine(6, **s),
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("policy", ["raise", "skip", "stop"])
def test_a_sound_program_is_the_same_under_every_policy(name: str, policy: str) -> None:
    plain, guarded = SOUND[name](), SOUND[name](non_finite=policy)
    plain.run()
    guarded.run()
    assert same(state(guarded), state(plain))


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "gradient"])
def test_a_stop_saves_what_was_before_the_step_and_can_be_resumed(
    name: str, tmp_path: Path
) -> None:
    watching, said = Watching(), Said()
    build = PROGRAMS[name]
    settings = {"non_finite": "stop", "checkpoint_dir": tmp_path}
    engine = build(hooks=[watching, said], **settings)
    end = engine.train_iters
    said.listen(engine)
    engine.run()
    assert engine.global_step < end
    assert any("The run ends before that step" in text for text in said.texts)
    stopped = build(**settings)
    stopped.load(tmp_path / f"step-{engine.global_step:010d}.ckpt")
    assert same(state(stopped), state(engine))
    assert all(t.isfinite().all() for p in engine.problems for t in p.module.state_dict().values())
    resumed = build(**(settings | {"non_finite": "skip"}))
    resumed.run(resume="auto")
    whole = build(non_finite="skip")
    whole.run()
    assert resumed.global_step == end
    # Methods of "hypergradient" count their calls again; in "unrolled" a stop also leaves out the
    # upper step of its iteration, which skipping takes through the other step of the loop.
    if name not in ("hypergradient", "unrolled"):
        assert same(state(resumed), state(whole))


class Said(Hook):
    """Keeps what is said."""

    only_shows = True

    def __init__(self) -> None:
        self.texts: list[str] = []

    def listen(self, engine: Engine) -> None:
        engine.logger.info = engine.logger.warning = self.texts.append  # type: ignore[method-assign,assignment]


def test_a_hypergradient_that_is_not_finite_leaves_the_upper_step_out() -> None:
    hook = NonFinite("skip")
    engine = broken(hooks=[hook])
    engine.run()
    assert hook.skipped == {"outer": 1}
    # Gradients of 1 at the four other steps, on top of a direct part of 0.
    assert engine.outer.module.w.item() == pytest.approx(0.5 - 0.1 * 4, abs=1e-12)


def test_a_hypergradient_that_cannot_be_formed_is_raised_or_left_out() -> None:
    with pytest.raises(HypergradientError, match="The solve diverged; damp it"):
        broken(error=True, non_finite="raise").run()
    hook, said = NonFinite("skip"), Said()
    engine = broken(error=True, hooks=[hook])
    said.listen(engine)
    engine.run()
    assert hook.skipped == {"outer": 1}
    assert said.texts == [text for text in said.texts if "The solve diverged; damp it. It " in text]


def test_skips_are_told_and_logged(tmp_path: Path) -> None:
    said = Said()
    engine = single(
        problem(data=numbers(NAN, 1.0)),
        steps=12,
        non_finite="skip",
        logger_type="csv",
        log_dir=tmp_path,
    )
    said.listen(engine)
    engine.run()
    ends = [text.rsplit(".", 2)[1] for text in said.texts]
    assert ends == [f" Optimizer step skipped, {n} so far" for n in (1, 2, 4)]
    (path,) = tmp_path.glob("*/metrics.csv")
    rows = path.read_text().split()
    assert rows[1:] == [f"{2 * n - 1},non_finite/chase,skipped,{n:.1f}" for n in range(1, 7)]


def test_too_many_in_a_row_are_an_error() -> None:
    data = numbers(1.0, NAN, NAN, 1.0, NAN, NAN, NAN)
    engine = single(problem(data=data), steps=20, hooks=[NonFinite("skip", in_a_row=3)])
    with pytest.raises(
        NonFiniteError,
        match=r"last 3 optimizer steps of problem 'chase' were skipped; last reason: The loss",
    ):
        engine.run()
    assert engine.chase.count == 7


def scaled(data: Any, scale: float, **settings: Any) -> Engine:
    module = Point(0.0).float()
    chase = problem(
        module=module,
        data=[batch.float() for batch in data],
        config=Config(precision="fp16", initial_dynamic_scale=scale),
    )
    return single(chase, steps=8, **settings)


def test_an_overflow_of_the_loss_scale_is_no_fault() -> None:
    hook = NonFinite("raise")
    engine = scaled(numbers(10.0, 5.0), 1e38, hooks=[hook])
    plain = scaled(numbers(10.0, 5.0), 1e38)
    engine.run()
    plain.run()
    assert hook.skipped == {}
    assert engine.chase.scaler.get_scale() < 1e38
    assert torch.equal(engine.chase.module.w, plain.chase.module.w)
    assert engine.chase.module.w.item() != 0


def test_a_fault_under_loss_scaling_does_not_move_the_scale() -> None:
    hook = NonFinite("skip")
    engine = scaled(numbers(1.0, NAN), 8.0, hooks=[hook])
    engine.run()
    clean = scaled(numbers(1.0), 8.0)
    clean.train_iters = 4
    clean.run()
    assert hook.skipped == {"chase": 4}
    assert engine.chase.scaler.get_scale() == 8.0
    assert torch.equal(engine.chase.module.w, clean.chase.module.w)


def test_a_gradient_is_at_fault_once_the_scale_is_down() -> None:
    chase = problem(
        Root,
        module=Point(1.0).float(),
        data=[torch.ones(1)],
        config=Config(precision="fp16", initial_dynamic_scale=4.0),
    )
    engine = single(chase, steps=8, non_finite="raise")
    with pytest.raises(NonFiniteError, match="gradient of problem 'chase' is not finite"):
        engine.run()
    assert chase.scaler.get_scale() == 1.0
    # The third step left no trace.
    assert chase.count == 2


def test_an_unrolled_step_the_loss_scaler_left_out_is_not_replayed() -> None:
    """The scale overflows at first, and halves at each step until it does not."""
    hook = NonFinite("raise")
    config = Config(type="unroll", precision="fp16", initial_dynamic_scale=1e38)
    data = [torch.full((1,), 10.0)]
    inner = problem(Inner, "inner", module=Point(0.0).float(), data=data, config=config)
    outer = problem(Outer, "outer", module=Point(0.5).float(), data=data)
    engine = bilevel(inner=inner, outer=outer, steps=10, hooks=[hook])
    engine.run()
    assert engine.outer.module.w.isfinite().all()
    assert engine.inner.module.w.item() != 0
    # Not counted as faults of the inner problem; the outer one had nothing to go through.
    assert set(hook.skipped) == {"outer"}


def test_averages_do_not_count_steps_left_out() -> None:
    def averaged(data: Any, steps: int) -> Tensor:
        average = EMAHook("chase", 0.9)
        engine = single(problem(data=data), steps=steps, hooks=[average, NonFinite("skip")])
        engine.run()
        return average.teacher().w.detach()

    assert torch.equal(averaged(numbers(1.0, NAN), 6), averaged(numbers(1.0), 3))


def test_schedulers_go_on_without_a_warning() -> None:
    chase = problem(data=numbers(NAN, 1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(chase.optimizer, 2, 0.5)
    chase.set_scheduler(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single(chase, steps=4, non_finite="skip").run()
    assert scheduler.last_epoch == 4


def test_a_hook_may_refuse_for_reasons_of_its_own() -> None:
    class Refusing(Hook):
        def accepts(self, engine: Engine, problem: Any, result: Any) -> bool:
            return bool(result.loss < 1.0)

    engine = single(problem(data=numbers(1.0, 9.0)), steps=4, hooks=[Refusing()])
    clean = single(problem(data=numbers(1.0)), steps=2)
    engine.run()
    clean.run()
    assert torch.equal(engine.chase.module.w, clean.chase.module.w)


def spoiled_loader() -> TensorLoader:
    data = samples(20, 1)
    data.inputs[3, 1] = NAN
    return TensorLoader(data, 3, seed=1, transform=Jitter())


def test_resumes_exactly_among_steps_left_out(tmp_path: Path) -> None:
    build = two_levels(
        Unrolled,
        lower={"unroll_steps": 3, "gradient_accumulation": 2},
        data=spoiled_loader,
        non_finite="skip",
        train_iters=14,
    )
    assert_resumes_exactly(build, tmp_path)


def test_a_run_saved_without_the_policy_can_be_resumed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    Case((1.0, 2.0)).engine(2).save(path)
    engine = Case((1.0, NAN)).engine(2, non_finite="skip")
    engine.load(path)
    guarded = tmp_path / "guarded"
    engine.save(guarded)
    Case((1.0, 2.0)).engine(2).load(guarded)


def test_counts_are_saved() -> None:
    hook, other = NonFinite("skip"), NonFinite("skip")
    engine = single(problem(data=numbers(NAN)), steps=3, hooks=[hook])
    engine.run()
    (saved,) = engine_to_plain(engine)[0]["hooks"]
    other.load_state_dict(from_plain(saved["state"]))
    assert other.skipped == {"chase": 3}
    assert other.state_dict() == hook.state_dict()


def test_two_policies_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"2 policies .*: 'skip', 'raise'\. Give one"):
        single(problem(), non_finite="skip", hooks=[NonFinite()])
