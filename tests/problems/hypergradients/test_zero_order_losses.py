"""Losses that the zeroth-order hypergradient measures."""

from __future__ import annotations

import random

import pytest
import torch
from metaweight.problems.hypergradients.value import Rollouts
from metaweight.problems.recording.recorded_steps import RecordedStep, Recording
from metaweight.problems.recording.trajectory import Trajectory
from metaweight.problems.state.random_streams import RandomState
from metaweight.problems.step.upper_loss import UpperLoss
from support.measured_losses import (
    ONE,
    Lower,
    Upper,
    along,
    directions,
    joined,
    lower_problem,
    upper_problem,
)
from support.naive import everything, relative_error
from support.reweighting import Declared, Plain, program
from support.small import Point
from support.zoo import FlippedGroup, over

from metaweight import (
    Config,
    ImplicitProblem,
    Unroll,
    ZeroOrder,
)


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
    again = UpperLoss(upper, lambda: upper.evaluate(batch)[0], batch)
    upper.evaluate(batch)
    first = upper.step_state.trajectory._open.steps[-1].samples.losses.clone()
    for p in upper.module.parameters():
        p.data.add_(0.1)
    before = [*everything(upper.module), torch.get_rng_state()]
    again()
    after = [*everything(upper.module), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(upper.step_state.trajectory._open.steps[-1].samples.losses, first)


def test_counts_of_errors_need_no_floating_point() -> None:
    class Counts(Upper):
        def training_step(self, batch):
            return (self.lower.module.w > 0).sum()

    _, found = joined(upper_problem(Counts), lower_problem(method=ZeroOrder(radius=2.0)))
    assert found[0].dtype == torch.float64


def test_its_name() -> None:
    assert Lower("lower", Config(type="zero_order")).hypergradient == ZeroOrder()
