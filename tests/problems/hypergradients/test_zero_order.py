"""The zeroth-order hypergradient against the exact unrolled one, in float64.

One sample is ``(Φ(θ + s e) - Φ(θ - s e)) / (2s) e``, which for a smooth ``Φ`` and a small ``s`` is
``<g, e> e`` with the exact gradient ``g``: its direction can be drawn again, and the two compared
to ``O(s²)``, without any statistics. With ``s = 1e-5`` a relative 1e-5 leaves room for rounding,
1e-16 / s over a slope of 1e-4. That the mean is unbiased is tested once, with z-scores.

The losses here detach nothing: a detached quantity moves with ``θ`` in ``Φ`` all the same, which
the unrolled derivative leaves out.
"""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import lower_view
from metaweight.problems.hypergradients.value import Rollouts, seed_of
from metaweight.problems.recording.trajectory import RecordedStep, Recording, Trajectory
from metaweight.problems.state.random_streams import RandomState
from metaweight.problems.step.upper_loss import UpperLoss
from support.naive import everything, relative_error
from support.reweighting import Declared, Plain, program
from support.small import Point
from support.unrolled import Setting, build, engine_gradient, keep_gradients
from support.zoo import FlippedGroup, over

from metaweight import (
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    FiniteDifference,
    HypergradientError,
    ImplicitProblem,
    LossError,
    Unroll,
    ZeroOrder,
)

ONE = ZeroOrder(samples=1, radius=1e-5, seed=5)


class Implicit(ImplicitProblem):
    """The lower problem of the unrolled programs, without their stop-gradient."""

    def training_step(self, batch):
        inputs, labels = batch
        upper, weights = self.upper.module, self.module.parameters()
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        penalty = sum((s.exp() * w**2).sum() for s, w in zip(upper.penalty, weights, strict=True))
        return (upper.weigh(losses.unsqueeze(1)).squeeze(1) * losses).mean() + penalty

    def learned_settings(self):
        return {name: self.upper.module.learned()[name] for name in self.cfg or ()}


def directions(method, lower, upper):
    """The first direction that was drawn at the lower problem's present count."""
    generator = torch.Generator().manual_seed(seed_of(method.seed, lower.name, lower.count))
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in upper.parameters()]


def along(gradient, direction):
    slope = sum((g * e).sum() for g, e in zip(gradient, direction, strict=True))
    return [slope * e for e in direction]


def gradients_of(engine):
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for p in engine.upper.module.parameters()
    ]


SETTINGS = {
    "momentum": Setting(settings={"lr": 0.1, "momentum": 0.9}),
    "adam, scheduler": Setting(torch.optim.Adam, {"lr": 0.02}, scheduler=True),
    "clipping, accumulation": Setting(settings={"lr": 0.1}, clipping=0.1, accumulation=3),
    "learned rate": Setting(settings={"lr": 0.1, "momentum": 0.9}, learned=("lr", "momentum")),
    "adagrad": Setting(torch.optim.Adagrad, {"lr": 0.1}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_sample_is_the_exact_slope_along_its_direction(case: str) -> None:
    setting = SETTINGS[case]
    exact = engine_gradient(setting, Unroll(), lower=Implicit)
    engine = build(setting, ONE, lower=Implicit)
    seen = keep_gradients(engine)
    for _ in range(setting.steps * setting.accumulation * (setting.earlier + 1)):
        engine.train_step()
    expected = along(exact, directions(ONE, engine.lower, engine.upper))
    assert relative_error(seen["upper"], expected) < 1e-5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_masks_are_replayed_and_batch_statistics_used(accumulation: int) -> None:
    """Dropout would otherwise be noise of the size of the loss, divided by 1e-5."""
    results = []
    for method in (Unroll(), ONE):
        engine = program(
            Plain,
            extra="attached",
            config=Config(type=method, unroll_steps=3, gradient_accumulation=accumulation),
            dropout=0.5,
        )
        found = []

        def look(engine=engine, found=found):
            found[:] = [p.grad.clone() for p in engine.judge.module.parameters()]

        engine.judge.grad_callback = look
        torch.default_generator.manual_seed(4)
        for _ in range(6 * accumulation):
            engine.train_step()
        results.append(found)
    expected = along(results[0], directions(ONE, engine.classifier, engine.judge))
    assert relative_error(results[1], expected) < 1e-5


def test_the_mean_is_unbiased() -> None:
    """50 seeds of 4 samples; every coordinate within 4 measured standard errors of the unroll.

    The seeds are fixed, so this cannot fail by chance later; over all seeds 20 coordinates would
    pass with probability 0.999. The squares of the z-scores average 1. The standard error in the
    status is that of 4 samples; over the seeds its square averages the variance that is seen.
    """
    setting = Setting(settings={"lr": 0.1, "momentum": 0.9}, steps=2, earlier=0)
    exact = torch.cat([t.reshape(-1) for t in engine_gradient(setting, Unroll(), lower=Implicit)])
    used, errors = [], []

    class Many(ZeroOrder):
        def estimate(self, lower, value, upper_parameters):
            used.clear(), errors.clear()
            for seed in range(50):
                method = ZeroOrder(samples=4, radius=1e-3, seed=seed)
                product = method.estimate(lower, value, upper_parameters)
                used.append(torch.cat([t.reshape(-1) for t in product.values]))
                errors.append(product.status.values["standard error"])
            return product

    engine = build(setting, Many(), lower=Implicit)
    for _ in range(setting.steps * (setting.earlier + 1)):
        engine.train_step()
    estimates = torch.stack(used)
    z = (estimates.mean(0) - exact) / (estimates.std(0) / len(used) ** 0.5)
    print(f"{len(z)} z-scores: largest {float(z.abs().max()):.2f}, mean square {(z**2).mean():.2f}")
    assert float(exact.norm()) > 1e-4
    assert z.abs().max() < 4
    assert 0.3 < (z**2).mean() < 2
    predicted = torch.stack(errors).square().mean()
    assert float(predicted / estimates.var(0).sum()) == pytest.approx(1, rel=0.3)


class Lower(ImplicitProblem):
    """Moves towards the upper problem's parameters, ever more slowly."""

    def training_step(self, batch):
        return (
            (self.module.w - self.upper.module.w.sin()) ** 2
        ).sum() + batch * self.module.w.sum()


class Upper(ImplicitProblem):
    """A loss that also depends on its own parameters, with a graph or without."""

    def training_step(self, batch):
        loss = (self.lower.module.w**2).sum() + 3 * (self.module.w**3).sum()
        return loss.detach() if self.cfg == "no graph" else loss


def numbers(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def lower_problem(kind=Lower, name="lower", method=ONE, steps=2, **more):
    low = Point(0.3, -0.4)
    return kind(
        name,
        Config(type=method, unroll_steps=steps),
        low,
        torch.optim.SGD(low.parameters(), 0.1, momentum=0.5),
        train_data_loader=numbers(0.1, 0.2, 0.4),
        **more,
    )


def upper_problem(kind=Upper, name="upper", mode="graph", config=None):
    up = Point(0.5, 1.0)
    return kind(
        name,
        config,
        up,
        torch.optim.SGD(up.parameters(), 0.0),
        train_data_loader=numbers(0.0),
        extra_config=mode,
    )


def joined(upper, *lowers, below=None):
    l2u = {lower: [upper] for lower in lowers}
    problems = [upper, *lowers]
    if below is not None:
        problems.append(below)
        l2u[below] = [lowers[0]]
    engine = Engine(
        problems,
        EngineConfig(strategy="cpu"),
        {"u2l": {upper: list(lowers)}, "l2u": l2u},
    )
    seen = {}

    def look(problem):
        seen[problem.name] = [p.grad.clone() for p in problem.module.parameters()]

    upper.grad_callback = lambda: look(upper)
    for _ in range(4):
        engine.train_step()
    return engine, seen[upper.name]


def indirect(mode="graph", **kinds):
    """The exact derivative through the lower problem alone, and the direct one."""
    _, whole = joined(upper_problem(), lower_problem(method=Unroll(), **kinds))
    direct = [9 * torch.tensor([0.5, 1.0], dtype=torch.float64) ** 2]
    return [w - d for w, d in zip(whole, direct, strict=True)], direct


def test_a_direct_gradient_comes_from_autograd_and_is_counted_once() -> None:
    through, direct = indirect()
    engine, found = joined(upper_problem(), lower_problem())
    noise = along(through, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, [direct[0] + noise[0]]) < 1e-5


def test_without_a_graph_the_direct_part_is_estimated_too() -> None:
    through, direct = indirect()
    engine, found = joined(upper_problem(mode="no graph"), lower_problem())
    whole = [through[0] + direct[0]]
    expected = along(whole, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, expected) < 1e-5


class Pair(Upper):
    def training_step(self, batch):
        loss = (self.lower.module.w**2).sum() + 2 * (self.second.module.w**3).sum()
        loss = loss + 3 * (self.module.w**3).sum()
        return loss.detach() if self.cfg == "no graph" else loss


def test_two_lower_problems_count_the_direct_part_once() -> None:
    def run(mode, *methods):
        lowers = [
            lower_problem(name=name, method=method)
            for name, method in zip(("lower", "second"), methods, strict=True)
        ]
        return joined(upper_problem(Pair, mode=mode), *lowers)

    direct = 9 * torch.tensor([0.5, 1.0], dtype=torch.float64) ** 2
    _, both = run("graph", Unroll(), Unroll())
    first, _ = indirect()
    second = [both[0] - first[0] - direct]

    engine, found = run("no graph", ONE, ONE)
    one = directions(ONE, engine.lower, engine.upper.module)
    two = directions(ONE, engine.second, engine.upper.module)
    assert not torch.equal(one[0], two[0])
    expected = along([first[0] + direct], one)[0] + along(second, two)[0]
    assert relative_error(found, [expected]) < 1e-5

    engine, mixed = run("graph", ONE, Unroll())
    one = directions(ONE, engine.lower, engine.upper.module)
    expected = along(first, one)[0] + second[0] + direct
    assert relative_error(mixed, [expected]) < 1e-5

    with pytest.raises(LossError, match="'upper' does not depend on any parameter that requires"):
        run("no graph", ONE, Unroll())


def test_upper_accumulation_averages_it() -> None:
    """Two micro-batches of the upper problem after two loops, each scaled by a half."""
    single, found = [], []
    for accumulation, sink in ((1, single), (2, found)):
        upper = upper_problem(mode="no graph", config=Config(gradient_accumulation=accumulation))
        lower = lower_problem()
        engine = over(upper, lower)
        upper.grad_callback = lambda upper=upper, sink=sink: sink.append(
            upper.module.w.grad.clone()
        )
        for _ in range(4):
            engine.train_step()
    torch.testing.assert_close(found[1], (single[0] + single[1]) / 2, rtol=1e-9, atol=0)


def test_other_problems_are_where_they_are_now_when_the_loss_is_measured() -> None:
    """The one below has stepped before each step of the loop; the loss must see its last place."""

    class Feeder(ImplicitProblem):
        def training_step(self, batch):
            return ((self.module.w - 5) ** 2).sum()

    class Fed(Lower):
        def training_step(self, batch):
            return super().training_step(batch) + (self.feeder.module.w * self.module.w).sum()

    class Looks(Upper):
        def training_step(self, batch):
            return (self.lower.module.w * self.feeder.module.w**2).sum()

    def feeder():
        module = Point(0.1, 0.2)
        return Feeder(
            "feeder",
            None,
            module,
            torch.optim.SGD(module.parameters(), 0.1),
            train_data_loader=numbers(0.0),
        )

    _, exact = joined(upper_problem(Looks), lower_problem(Fed, method=Unroll()), below=feeder())
    engine, found = joined(upper_problem(Looks), lower_problem(Fed), below=feeder())
    expected = along(exact, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, expected) < 1e-5


class Shared(Lower):
    def training_step(self, batch):
        return super().training_step(batch) + (self.other.module.w**2 * self.module.w).sum()


class Second(Upper):
    """Comes after the first upper problem and sees where that one has gone."""

    def training_step(self, batch):
        return (self.lower.module.w * self.upper.module.w**2).sum()


def two_upper_problems(method):
    """The first one moves, the same way whatever its gradient, before the second one steps."""
    lower = lower_problem(Shared, method=method)
    upper, other = upper_problem(), upper_problem(Second, name="other")
    engine = Engine(
        [upper, other, lower],
        EngineConfig(strategy="cpu"),
        {"u2l": {upper: [lower], other: [lower]}, "l2u": {lower: [upper, other]}},
    )
    seen = {}
    for problem in (upper, other):
        problem.grad_callback = lambda p=problem: seen.update({p.name: p.module.w.grad.clone()})
    upper.param_callback = lambda: upper.module.w.data.add_(0.7)
    for _ in range(2):
        engine.train_step()
    return engine, seen


def test_two_upper_problems_each_find_their_own() -> None:
    """What the loop recorded of the upper problems must not undo their displacement, and the loss
    must see the first one where it is now."""
    _, exact = two_upper_problems(Unroll())
    engine, found = two_upper_problems(ONE)
    direct = {
        "upper": 9 * torch.tensor([0.5, 1.0], dtype=torch.float64) ** 2,
        "other": torch.zeros(2, dtype=torch.float64),
    }
    for name, part in direct.items():
        e = directions(ONE, engine.lower, getattr(engine, name).module)
        expected = part + along([exact[name] - part], e)[0]
        assert relative_error([found[name]], [expected]) < 1e-5


def test_going_back_takes_the_lower_problem_alone() -> None:
    engine, _ = two_upper_problems(ONE)
    lower, upper, other = (getattr(engine, name).module for name in ("lower", "upper", "other"))
    start = torch.tensor([0.3, -0.4], dtype=torch.float64)
    now, end = upper.w.detach().clone(), lower.w.detach().clone()
    with Rollouts(lower_view(engine.lower), [other.w]) as rollouts:
        rollouts.restore_start()
        assert torch.equal(lower.w, start)
        assert torch.equal(upper.w, now)
    assert torch.equal(lower.w, end)


def test_learned_starts_are_displaced_too() -> None:
    class Started(Lower):
        def initial_parameters(self):
            return {"w": self.upper.module.w.cos()}

    through, direct = indirect(kind=Started)
    engine, found = joined(upper_problem(), lower_problem(Started))
    noise = along(through, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, [direct[0] + noise[0]]) < 1e-5


def error_rate_program(hard, method):
    """Two groups of samples, one with flipped labels, and a learned weight for each.

    The upper loss is the error rate on clean samples, which has no derivative at all; with ``hard``
    the lower loss is a step function of the weights.
    """
    samples = FlippedGroup()

    class Classifier(ImplicitProblem):
        def training_step(self, batch):
            weights = self.weigher.module.w.sigmoid()
            if hard:
                weights = (weights > 0.5).double() + 0.1
            return (weights[samples.group] * samples.losses(self.module.w)).mean()

        def on_inner_loop_start(self):
            self.module.w.data.zero_()

    class Weigher(ImplicitProblem):
        def training_step(self, batch):
            return samples.error(self.classifier.module.w)

    low, up = Point(*[0.0] * 5), Point(0.0, 0.0)
    classifier = Classifier(
        "classifier",
        Config(type=method, unroll_steps=4),
        low,
        torch.optim.SGD(low.parameters(), 1.0),
        train_data_loader=[0],
    )
    weigher = Weigher(
        "weigher",
        Config(log_step=1),
        up,
        torch.optim.Adam(up.parameters(), 0.1),
        train_data_loader=[0],
    )
    engine = over(weigher, classifier, train_iters=160)

    return engine, up, lambda: float(samples.error(low.w))


@pytest.mark.parametrize(
    "hard", [pytest.param(False, marks=pytest.mark.slow), True], ids=["soft", "hard weights"]
)
def test_an_error_rate_is_reduced(hard: bool) -> None:
    """60 % of the samples are flipped: learning from all of them is worse than guessing."""
    engine, up, error = error_rate_program(hard, ZeroOrder(samples=8, radius=0.5))
    for _ in range(4):
        engine.train_step()
    before = error()
    engine.run()
    print(f"error {before:.2f} -> {error():.2f}, group weights {up.w.detach().sigmoid().tolist()}")
    assert before > 0.5
    assert error() < 0.2
    assert up.w[1] < up.w[0]
    status = engine.classifier.hypergradient_status
    assert status.method == "ZeroOrder"
    assert "standard error" in status.describe()


def test_directions_differ_between_steps() -> None:
    lower = lower_problem()
    joined(upper_problem(), lower)
    first = directions(ONE, lower, upper_problem().module)
    lower.step_state.begin_step(lower.count + 1, None)
    assert not torch.equal(first[0], directions(ONE, lower, upper_problem().module)[0])


def test_the_loss_is_measured_with_the_random_numbers_it_was_trained_with() -> None:
    """And leaves the upper problem's buffers and streams where one evaluation leaves them."""

    class Drawing(Lower):
        def training_step(self, batch):
            return super().training_step(batch) * torch.rand((), dtype=torch.float64)

    class Noisy(Upper):
        def get_batch(self):
            return torch.rand(()), random.random()

        def training_step(self, batch):
            noise = torch.rand((), dtype=torch.float64) + random.random()
            self.module.seen += 1
            loss = noise * (self.lower.module.w**2).sum()
            return loss.detach() if self.cfg == "no graph" else loss

    def run(method, mode):
        torch.default_generator.manual_seed(9), random.seed(9)
        upper = upper_problem(Noisy, mode=mode)
        upper.module.register_buffer("seen", torch.zeros(()))
        engine, found = joined(upper, lower_problem(Drawing, method=method))
        return engine, found, float(torch.rand(())), random.random()

    engine, found, *streams = run(ONE, "no graph")
    exact_engine, exact, *exact_streams = run(Unroll(), "graph")
    expected = along(exact, directions(ONE, engine.lower, engine.upper.module))
    assert relative_error(found, expected) < 1e-5
    assert float(engine.upper.module.seen) == float(exact_engine.upper.module.seen) == 2
    assert streams == exact_streams


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_nothing_displaced_the_loss_itself_is_measured(precision: str) -> None:
    """Bit-equal, dropout and batch norm included: the lower problem's precision is kept while its
    steps are taken, and does not reach the upper problem's loss."""
    measured = []

    class Still(ZeroOrder):
        def estimate(self, lower, value, upper_parameters):
            with Rollouts(lower, upper_parameters) as rollouts:
                rollouts.run(rollouts.updates)
                measured.append(value())
            return super().estimate(lower, value, upper_parameters)

    engine = program(
        Plain,
        config=Config(type=Still(samples=1), unroll_steps=2, precision=precision),
        dropout=0.5,
        dtype=torch.float32,
    )
    for _ in range(2):
        engine.train_step()
    judge = engine.judge
    evaluate, losses = judge.evaluate, []

    def noted(batch):
        evaluated = evaluate(batch)
        losses.append(evaluated.loss.detach())
        return evaluated

    judge.evaluate = noted
    for _ in range(2):
        engine.train_step()
    assert torch.equal(measured[1], losses[0])
    assert not torch.equal(measured[1], losses[2])


def test_half_precision_sees_parameters_that_moved() -> None:
    """An autocast context keeps the casts of weights it has seen, also of weights moved since."""
    values = []

    class Moved(ZeroOrder):
        def estimate(self, lower, value, upper_parameters):
            with Rollouts(lower, upper_parameters):
                values.append(value())
                engine.classifier.module[-1].weight.data.mul_(2)
                values.append(value())
            return super().estimate(lower, value, upper_parameters)

    half = Config(type=Moved(samples=1), precision="bf16")
    engine = program(Plain, config=half, dtype=torch.float32)
    engine.judge._config = Config(precision="bf16")
    engine.train_step()
    assert not torch.equal(values[0], values[1])


def test_what_the_upper_problem_records_of_its_step_is_the_first_evaluation() -> None:
    engine = program(Declared)
    engine.run()
    upper = engine.classifier
    upper.step_state.trajectory = Trajectory(Recording(losses=True))
    upper.step_state.trajectory.open(upper)
    batch = upper.cur_batch
    upper.step_state.trajectory.add(RecordedStep(batch, RandomState(upper.device)))
    again = UpperLoss(upper, lambda: upper.evaluate(batch)[0])
    upper.evaluate(batch)
    first = upper.step_state.trajectory._open.steps[-1].samples.losses.clone()
    for p in upper.module.parameters():
        p.data.add_(0.1)
    before = [*everything(upper.module), torch.get_rng_state()]
    again()
    after = [*everything(upper.module), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(upper.step_state.trajectory._open.steps[-1].samples.losses, first)


def test_has_no_vector_jacobian_product() -> None:
    engine, _ = joined(upper_problem(), lower_problem())
    with pytest.raises(HypergradientError, match=r"ZeroOrder of problem 'lower'.*call estimate"):
        ONE.vjp(lower_view(engine.lower), [], [])


def test_a_loss_that_is_not_finite_is_refused() -> None:
    class Broken(Upper):
        def training_step(self, batch):
            return (self.lower.module.w.sum() * float("nan")).detach()

    with pytest.raises(HypergradientError, match=r"ZeroOrder through problem 'lower'.*smaller rad"):
        joined(upper_problem(Broken), lower_problem())


def test_counts_of_errors_need_no_floating_point() -> None:
    class Counts(Upper):
        def training_step(self, batch):
            return (self.lower.module.w > 0).sum()

    _, found = joined(upper_problem(Counts), lower_problem(method=ZeroOrder(radius=2.0)))
    assert found[0].dtype == torch.float64


def three(middle_method, leaf_method):
    class Leaf(ImplicitProblem):
        def training_step(self, batch):
            return ((self.module.w - self.middle.module.w * self.top.module.w) ** 2).sum()

    class Middle(ImplicitProblem):
        def training_step(self, batch):
            return (self.module.w * self.leaf_.module.w * self.top.module.w).sum()

    class Top(ImplicitProblem):
        def training_step(self, batch):
            return (self.leaf_.module.w**2 + self.middle.module.w**2).sum()

    def make(kind, name, method):
        module = Point(0.5, 1.0)
        return kind(
            name,
            Config(type=method),
            module,
            torch.optim.SGD(module.parameters(), 0.1),
            train_data_loader=numbers(0.0),
        )

    top, middle = make(Top, "top", FiniteDifference()), make(Middle, "middle", middle_method)
    leaf = make(Leaf, "leaf_", leaf_method)
    return Engine(
        [top, middle, leaf],
        EngineConfig(strategy="cpu"),
        {"u2l": {top: [leaf], middle: [leaf]}, "l2u": {leaf: [middle], middle: [top]}},
    )


def test_longer_paths_are_refused_when_the_engine_is_built() -> None:
    with pytest.raises(ConfigurationError, match=r"'leaf_'.*path top -> middle -> leaf_ -> top"):
        three(FiniteDifference(), ZeroOrder())
    with pytest.raises(ConfigurationError, match=r"'middle' asks for ZeroOrder.*steps again"):
        three(ZeroOrder(), FiniteDifference())
    three(FiniteDifference(), FiniteDifference()).train_step()


def test_steps_that_cannot_be_taken_again_are_refused() -> None:
    class Own(Lower):
        def custom_optimizer_step(self):
            self.optimizer.step()

    with pytest.raises(ConfigurationError, match="'lower' asks for ZeroOrder but takes steps of"):
        joined(upper_problem(), lower_problem(Own))
    half = lower_problem()
    half._config = Config(type=ONE, hypergradient_parameters=("0",))
    with pytest.raises(ConfigurationError, match=r"leave hypergradient_parameters out"):
        ONE.check(lower_view(half))
    half._config = Config(type=ONE, precision="fp16")
    with pytest.raises(ConfigurationError, match=r"ZeroOrder with precision='fp16'.*use 'bf16'"):
        joined(upper_problem(), half)


def test_its_name() -> None:
    assert Lower("lower", Config(type="zero_order")).hypergradient == ZeroOrder()
