"""Batches that are written to in place after they were recorded are not evaluated again.

Right values are those of one graph in double precision, compared to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from metaweight.problems.recording.recorded_steps import RecordedStep
from metaweight.problems.state.random_streams import RandomState
from support.small import Point
from support.zoo import over
from torch import Tensor

from metaweight import (
    Config,
    ConjugateGradient,
    Engine,
    HypergradientError,
    ImplicitProblem,
    ReweightedProblem,
    Unroll,
    ZeroOrder,
)

RATE = 0.1


class Lower(ImplicitProblem):
    """``cfg``: whether it writes to its batch."""

    def training_step(self, batch: Any) -> Tensor:
        x = batch["x"].div_(4.0) if self.cfg else batch["x"] / 4.0
        return 0.5 * ((self.module.w * x - self.upper.module.w) ** 2).sum()


class Weighed(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        x = batch["x"].div_(4.0) if self.cfg else batch["x"] / 4.0
        return 0.5 * (self.module.w * x - 1.0) ** 2

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.sigmoid(self.upper.module.w * losses)


class Upper(ImplicitProblem):
    """``cfg``: whether it writes to its batch."""

    def training_step(self, batch: Any) -> Tensor:
        x = batch[0].mul_(3.0) if self.cfg else batch[0] * 3.0
        return ((self.lower.module.w - x) ** 2).sum()

    def grad_callback(self) -> None:
        self.seen = float(self.module.w.grad)


class Fresh:
    """Batches of new tensors, or of one that is filled again."""

    def __init__(self, *numbers: float, again: bool = False, nest: Any = None) -> None:
        self.numbers, self.again = numbers, again
        self.nest = nest or (lambda x: {"x": x})

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        one = torch.zeros(1, dtype=torch.float64)
        for number in self.numbers:
            one = one if self.again else torch.zeros(1, dtype=torch.float64)
            yield self.nest(one.fill_(number))


def program(
    method: Any,
    data: Fresh,
    *,
    lower: type = Lower,
    steps: int = 1,
    writes: bool = False,
    above: bool = False,
    **settings: Any,
) -> Engine:
    net, theta = Point(2.0), Point(0.5)
    below = lower(
        "lower",
        Config(type=method, unroll_steps=steps),
        net,
        torch.optim.SGD(net.parameters(), lr=RATE),
        train_data_loader=data,
        extra_config=writes,
    )
    upper = Upper(
        "upper",
        None,
        theta,
        torch.optim.SGD(theta.parameters(), lr=0.0),
        train_data_loader=Fresh(1.0, nest=lambda x: [x]),
        extra_config=above,
    )
    return over(upper, below, train_iters=steps, **settings)


def by_hand(numbers: list[float]) -> float:
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(2.0, dtype=torch.float64)
    for number in numbers:
        x = number / 4.0
        w = w - RATE * (w * x - theta) * x
    (gradient,) = torch.autograd.grad((w - 3.0) ** 2, theta)
    return float(gradient)


AGAIN = r"A batch of problem 'lower' has been written to in place.*x = x / 4.*yield new tensors"
METHODS = {
    "unroll": ("unroll", Lower),
    "darts": ("darts", Lower),
    "cg": (ConjugateGradient(iterations=1), Lower),
    "zero order": (ZeroOrder(samples=1), Lower),
    "reweighting": ("reweighting", Weighed),
    "unrolled reweighting": (Unroll(product="one_sided"), Weighed),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_writes_to_its_batch_is_not_evaluated_again(name: str) -> None:
    method, lower = METHODS[name]
    engine = program(method, Fresh(4.0), lower=lower, writes=True)
    with pytest.raises(HypergradientError, match=AGAIN):
        engine.run()
    program(method, Fresh(4.0), lower=lower).run()


@pytest.mark.parametrize("memory", ["flat", "full"])
def test_a_loader_that_fills_one_tensor_again_is_found_in_a_loop(memory: str) -> None:
    with pytest.raises(HypergradientError, match=AGAIN):
        program(Unroll(memory=memory), Fresh(1.0, 2.0, 3.0, again=True), steps=3).run()
    engine = program(Unroll(memory=memory), Fresh(1.0, 2.0, 3.0), steps=3)
    engine.run()
    assert engine.upper.seen == pytest.approx(by_hand([1.0, 2.0, 3.0]), rel=1e-12)


def test_it_may_be_filled_again_where_each_step_has_its_hypergradient() -> None:
    engine = program("unroll", Fresh(1.0, 2.0, again=True))
    for number in (1.0, 2.0):
        engine.lower.module.w.data.fill_(2.0)
        engine.train_step()
        assert engine.upper.seen == pytest.approx(by_hand([number]), rel=1e-12)


def test_a_kept_graph_needs_no_second_evaluation() -> None:
    """The tensor is written to before the graph takes it."""
    engine = program(Unroll(memory="full"), Fresh(4.0, 8.0), steps=2, writes=True)
    engine.run()
    assert engine.upper.seen == pytest.approx(by_hand([4.0, 8.0]), rel=1e-12)


def test_an_upper_loss_that_writes_to_its_batch_is_not_measured_again() -> None:
    engine = program(ZeroOrder(samples=1), Fresh(4.0), above=True)
    with pytest.raises(HypergradientError, match="A batch of problem 'upper' has been written to"):
        engine.run()


def test_a_roll_back_does_not_take_the_step_again() -> None:
    engine = program(Unroll(memory="full"), Fresh(4.0), writes=True, roll_back=True)
    with pytest.raises(HypergradientError, match=AGAIN):
        engine.run()


def test_inference_tensors_have_no_version() -> None:
    """The mixed derivative is constant: the result is that of the unrolled step without the rate,
    to the rounding of a difference."""

    def made(x: Tensor) -> Any:
        with torch.inference_mode():
            return {"x": x + 0.0}

    engine = program("darts", Fresh(4.0, nest=made))
    engine.run()
    assert engine.upper.seen == pytest.approx(by_hand([4.0]) / RATE, rel=1e-6)


def test_a_copy_of_a_recorded_step_knows_what_the_batch_was() -> None:
    """A method that draws other random numbers for each pass makes such copies."""
    batch = torch.ones(2)
    step = RecordedStep(batch, RandomState(batch.device))
    batch.add_(1.0)
    copy = replace(step, random=RandomState(batch.device))
    for each in (step, copy):
        with pytest.raises(HypergradientError, match="A batch of problem 'lower' has been written"):
            each.batch_again("lower")
