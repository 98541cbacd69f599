"""Learning rates under every kind of scheduler, against torch used by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.resuming import assert_resumes_exactly, two_levels
from support.small import Inner, Point, bilevel, numbers, problem, single
from torch.optim import lr_scheduler as lrs

from metaweight import Config, Engine, GraphError

STEPS = 12

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one cycle": lambda o: lrs.OneCycleLR(o, max_lr=0.5, total_steps=STEPS + 1),
    "sequential": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, total_iters=4), lrs.ExponentialLR(o, 0.8)], milestones=[4]
    ),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, T_max=STEPS),
    "lambda": lambda o: lrs.LambdaLR(o, lambda n: 1 / (1 + n)),
    "steps": lambda o: lrs.MultiStepLR(o, [3, 7], 0.1),
}


def optimizer_of(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.5)


def by_hand(make: Callable[[Any], Any], steps: int) -> tuple[list[float], torch.Tensor]:
    module = Point(0.0)
    optimizer = optimizer_of(module)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * ((module() - 1.0) ** 2).sum()).backward()
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates, module.w.detach()


class Noting(Engine):
    """Keeps the learning rate of its first leaf after every step."""

    rates: list[float]

    def train_step(self) -> None:
        super().train_step()
        self.rates = [
            *self.__dict__.get("rates", []),
            self.leaves[0].optimizer.param_groups[0]["lr"],
        ]


def scheduled(make: Callable[[Any], Any], **settings: Any) -> Any:
    module = Point(0.0)
    optimizer = optimizer_of(module)
    return problem(module=module, optimizer=optimizer, scheduler=make(optimizer), **settings)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rates_and_parameters_equal_torchs_own(name: str) -> None:
    lower = scheduled(SCHEDULERS[name])
    scheduler = lower.scheduler
    engine = single(lower, engine=Noting, steps=STEPS)
    engine.run()
    rates, parameters = by_hand(SCHEDULERS[name], STEPS)
    assert engine.rates == rates
    assert len(set(rates)) > 2
    assert torch.equal(lower.module.w, parameters)
    assert lower.scheduler is scheduler


# torch takes the steps before the first update for a mistake in the order of calls.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scheduler_steps_with_every_micro_batch() -> None:
    lower = scheduled(SCHEDULERS["lambda"], config=Config(gradient_accumulation=3))
    engine = single(lower, engine=Noting, steps=6)
    engine.run()
    assert engine.rates == pytest.approx([0.2 / (1 + n) for n in range(1, 7)])


def test_a_step_taken_again_after_a_roll_back_advances_the_scheduler_once() -> None:
    inner = problem(Inner, "inner", data=numbers(1.0))
    inner.scheduler = lrs.ExponentialLR(inner.optimizer, 0.5)
    engine = bilevel(inner=inner, engine=Noting, steps=4, roll_back=True)
    engine.run()
    assert engine.rates == [0.05, 0.025, 0.0125, 0.00625]


class Measured(Noting):
    """Validation that gets no better after the second time."""

    def validation(self) -> dict[str, float]:
        return {"acc": 0.0, "loss": max(1.0, 3.0 - self.global_step)}


def plateau(mode: str = "min") -> Callable[[Any], Any]:
    return lambda optimizer: lrs.ReduceLROnPlateau(optimizer, mode=mode, patience=1, factor=0.5)


def test_a_plateau_scheduler_reads_what_validation_returns() -> None:
    engine = single(scheduled(plateau()), engine=Measured, steps=8, valid_step=1)
    engine.run()
    # Losses 2, 1, 1, 1, …: with patience 1 the second bad one halves; the rate is noted before
    # the validation of its step.
    reference = torch.optim.SGD(Point(0.0).parameters(), lr=0.2)
    scheduler = plateau()(reference)
    rates = []
    for step in range(1, 9):
        rates.append(reference.param_groups[0]["lr"])
        scheduler.step(max(1.0, 3.0 - step))
    assert engine.rates == rates
    assert len(set(rates)) == 3


def test_a_plateau_scheduler_waits_for_validation() -> None:
    engine = single(scheduled(plateau()), engine=Measured, steps=8, valid_step=4)
    engine.run()
    assert engine.chase.scheduler.last_epoch == 2


def test_another_metric_may_be_named() -> None:
    lower = scheduled(plateau("max"), config=Config(plateau_metric="acc"))
    single(lower, engine=Measured, steps=3, valid_step=1).run()
    assert lower.scheduler.best == 0.0
    assert lower.optimizer.param_groups[0]["lr"] == 0.1


def test_without_validation_a_plateau_scheduler_reads_the_training_loss() -> None:
    lower = scheduled(plateau())
    single(lower, steps=2).run()
    # 0.5 (w - 1)² at w = 0 and then at w = 0.2.
    assert lower.scheduler.best == pytest.approx(0.5 * 0.8**2)
    assert lower.scheduler.last_epoch == 2


@pytest.mark.parametrize(
    ("engine", "source"), [(Measured, "validation returned"), (Noting, "training_step returned")]
)
def test_a_missing_metric_is_named(engine: type[Engine], source: str) -> None:
    lower = scheduled(plateau(), config=Config(plateau_metric="f1"))
    with pytest.raises(GraphError, match=f"of problem 'chase' waits for 'f1', but {source}.*loss"):
        single(lower, engine=engine, steps=1, valid_step=1).run()


def test_a_scheduler_goes_on_amid_an_accumulation_without_a_warning(tmp_path: Path) -> None:
    """torch warns when a part of a sequence takes its first step before the optimizer has: here
    before the first optimizer step since the program was loaded."""
    build = two_levels(
        lower={"gradient_accumulation": 2},
        scheduler=lambda o: lrs.SequentialLR(
            o, [lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)], [2]
        ),
    )
    assert_resumes_exactly(build, tmp_path)
