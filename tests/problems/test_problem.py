"""One problem by itself: its name, its loss, its parameters and what it saves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.small import Chase, Point, numbers, problem, single
from torch import nn

from metaweight import Config, GraphError, ImplicitProblem


def test_anything_may_travel_along_as_extra_configuration() -> None:
    assert Chase("a", extra_config={"depth": 3}).cfg == {"depth": 3}


def returning(output: Any) -> Any:
    class Returning(ImplicitProblem):
        def training_step(self, batch: Any) -> Any:
            return output(self.module())

    return single(problem(Returning, "a", start=(1.0, 2.0)))


@pytest.mark.parametrize(
    "output",
    [
        lambda w: w.sum(),
        lambda w: w.sum().reshape(1, 1),
        lambda w: {"loss": w.sum(), "norm": w.norm(), "name": "x"},
    ],
)
def test_one_number_is_a_loss_in_any_shape_and_beside_other_values(output: Any) -> None:
    engine = returning(output)
    engine.run()
    assert engine.a.module.w.tolist() == [0.9, 1.9]


class Adapted(nn.Module):
    """A frozen weight and a small trained correction, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.tensor([1.0], dtype=torch.float64), requires_grad=False)
        self.delta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.base + self.delta


@pytest.mark.parametrize("optimised", ["all", "trainable"])
def test_frozen_parameters_are_not_trained(optimised: str) -> None:
    module = Adapted()
    parameters = module.parameters() if optimised == "all" else [module.delta]
    optimizer = torch.optim.SGD(parameters, lr=0.5, weight_decay=0.1)
    lower = problem(module=module, optimizer=optimizer, data=numbers(3.0))
    single(lower, steps=1).run()
    assert module.base.item() == 1.0
    assert module.base.grad is None
    assert not module.base.requires_grad
    assert module.delta.item() == 1.0  # half of the way from 1 to 3


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Point(0.0), Point(0.0)

    def forward(self) -> torch.Tensor:
        return self.a() + self.b()


def test_an_optimizer_over_part_of_the_parameters_trains_that_part() -> None:
    module = Halves()
    optimizer = torch.optim.SGD(module.b.parameters(), lr=0.5)
    lower = problem(module=module, optimizer=optimizer, data=numbers(2.0))
    single(lower, steps=2).run()
    assert lower.trainable_parameters() == [module.b.w]
    assert module.a.w.grad is None
    assert (module.a.w.item(), module.b.w.item()) == (0.0, 1.5)


def test_a_parameter_absent_from_the_loss_is_left_alone() -> None:
    class OnlyA(ImplicitProblem):
        def training_step(self, batch: Any) -> Any:
            return 0.5 * ((self.module.a() - batch) ** 2).sum()

    module = Halves()
    single(problem(OnlyA, module=module, lr=0.5)).run()
    assert (module.a.w.item(), module.b.w.item()) == (0.5, 0.0)


def test_parameter_groups_keep_their_own_learning_rates() -> None:
    module = Halves()
    optimizer = torch.optim.SGD(
        [{"params": module.a.parameters(), "lr": 0.25}, {"params": module.b.parameters()}], lr=0.5
    )
    lower = problem(module=module, optimizer=optimizer, data=numbers(4.0))
    single(lower).run()
    assert (module.a.w.item(), module.b.w.item()) == (1.0, 2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]


class Grouped(Chase):
    def param_groups(self) -> Any:
        return [
            {"params": self.module.a.parameters(), "lr": 0.125},
            {"params": self.module.b.parameters()},
        ]


def test_param_groups_replace_those_of_the_optimizer() -> None:
    module = Halves()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    lower = problem(Grouped, module=module, optimizer=optimizer, data=numbers(4.0))
    single(lower).run()
    assert lower.optimizer is optimizer
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.5]
    assert (module.a.w.item(), module.b.w.item()) == (0.5, 2.0)


def test_trainable_parameters_may_be_overridden() -> None:
    class OnlyB(Chase):
        def trainable_parameters(self) -> Any:
            return (p for p in [self.module.b.w])

    module = Halves()
    single(problem(OnlyB, module=module, lr=0.5, data=numbers(2.0))).run()
    assert (module.a.w.item(), module.b.w.item()) == (0.0, 1.0)


def gradient_step(clipping: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the parameters after one step here, and by torch's own clipping."""
    start, data = (1.0, -2.0, 3.0), [torch.tensor([scale, 0.0, -scale], dtype=torch.float64)]
    lower = problem(start=start, data=data, config=Config(gradient_clipping=clipping))
    single(lower).run()
    by_hand = Point(*start)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    (0.5 * ((by_hand() - data[0]) ** 2).sum()).backward()
    if clipping:
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), clipping)
    optimizer.step()
    return lower.module.w.detach(), by_hand.w.detach()


@pytest.mark.parametrize("clipping", [0.0, 0.5, 1e3])
def test_clipping_equals_torchs(clipping: float) -> None:
    ours, theirs = gradient_step(clipping, 10.0)
    assert torch.equal(ours, theirs)


def test_clipping_bounds_the_step() -> None:
    ours, _ = gradient_step(0.5, 10.0)
    assert (ours - torch.tensor([1.0, -2.0, 3.0])).norm().item() == pytest.approx(0.05, rel=1e-5)


def test_gradients_are_gone_after_an_update() -> None:
    lower = problem()
    single(lower).run()
    assert lower.module.w.grad is None


def test_state_goes_on_where_it_was_saved() -> None:
    def make() -> Any:
        module = Point(0.0)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return problem(module=module, optimizer=optimizer, scheduler=scheduler)

    whole = make()
    single(whole, steps=6).run()
    first, second = make(), make()
    single(first, steps=4).run()
    engine = single(second, steps=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    engine.run()
    assert torch.equal(second.module.w, whole.module.w)
    assert sorted(first.state_dict()) == ["module", "optimizer", "scheduler"]
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_modules_and_optimizers_can_be_exchanged_during_a_run() -> None:
    lower = problem()
    engine = single(lower)
    engine.run()
    other = Point(5.0)
    lower.set_module(other)
    lower.set_optimizer(torch.optim.SGD(other.parameters(), lr=0.5))
    lower.set_scheduler(None)
    engine.run()
    assert lower.module is other
    assert other.w.item() == 3.0


def test_a_module_without_an_optimizer_of_its_own_is_told() -> None:
    lower = problem()
    engine = single(lower, steps=2)
    lower.set_module(Point(5.0))
    with pytest.raises(GraphError, match=r"'chase' has nothing to train any more.*set_optimizer"):
        engine.run()
