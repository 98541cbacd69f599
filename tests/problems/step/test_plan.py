"""A plan holds until something changes, and the steps after a change follow a new one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.base.changes import changes
from metaweight.problems.step.plan import plan_of
from support.small import Inner, bilevel
from support.small import problem as small
from support.zoo import over
from torch import Tensor, nn

from metaweight import SAMA, Config, Engine, Hook, ImplicitProblem, Unroll, VarianceReduction


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return (self.module(batch).square() * torch.sigmoid(self.upper(batch))).mean()


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return (self.lower(batch) - 1).square().mean()


def program(config: Config | None = None) -> Engine:
    torch.default_generator.manual_seed(0)
    batches = list(torch.randn(4, 5, 2))
    low, up = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), nn.Linear(2, 1)
    lower = Lower(
        "lower", config or Config(), low, torch.optim.SGD(low.parameters(), 0.1), None, batches
    )
    upper = Upper("upper", Config(), up, torch.optim.SGD(up.parameters(), 0.1), None, batches)
    return over(upper, lower, train_iters=4)


def step(engine: Engine) -> None:
    engine.global_step += 1
    engine.train_step()


def test_a_plan_is_made_once_for_a_run() -> None:
    engine = program()
    step(engine)
    plans = [plan_of(problem) for problem in engine.problems]
    for _ in range(3):
        step(engine)
    assert all(plan_of(p) is plan for p, plan in zip(engine.problems, plans, strict=True))


def grow(engine: Engine) -> None:
    engine.lower.module[1] = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh())


def add_buffer(engine: Engine) -> None:
    engine.lower.module[0].register_buffer("seen", torch.zeros(()))


def assign_module(engine: Engine) -> None:
    engine.lower.module = nn.Linear(2, 1)


def audit(engine: Engine) -> None:
    engine.audit(engine.lower, SAMA())


CHANGES = {
    "a part of a network": grow,
    "a buffer": add_buffer,
    "another module": assign_module,
    "set_module": lambda engine: engine.lower.set_module(nn.Linear(2, 1)),
    "set_optimizer": lambda engine: engine.lower.set_optimizer(
        torch.optim.Adam(engine.lower.module.parameters())
    ),
    "another graph": lambda engine: engine.set_dependency({"l2u": {engine.lower: [engine.upper]}}),
    "another method": audit,
    "a method of one's own": lambda engine: setattr(
        engine.lower, "meta_trainable_parameters", lambda: [engine.lower.module[0].weight]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_lets_all_steps_be_planned_again(change: str) -> None:
    engine = program()
    step(engine)
    before = [plan_of(problem) for problem in engine.problems]
    CHANGES[change](engine)
    for problem, plan in zip(engine.problems, before, strict=True):
        assert plan_of(problem) is not plan


def test_what_is_no_part_of_a_program_changes_nothing() -> None:
    engine = program()
    step(engine)
    count = changes()
    nn.Sequential(nn.BatchNorm1d(3), nn.CrossEntropyLoss())
    engine.lower.remembered = 3
    for _, module in engine.lower.module.named_modules():
        module.train()
    assert changes() == count


def test_buffers_that_are_replaced_in_each_pass_change_nothing() -> None:
    engine = program()
    engine.lower.module.register_buffer("mean", torch.zeros(()))
    step(engine)
    count = changes()
    engine.lower.module.mean = torch.ones(())
    assert changes() == count


def test_a_batch_norm_that_comes_during_a_run_is_restored_as_one_from_the_start() -> None:
    """The upper step evaluates the lower network, whose statistics it leaves as they are."""
    engine = program()
    step(engine)
    grow(engine)
    norm = engine.lower.module[1][0]
    step(engine)
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("kind", ["darts", Unroll()], ids=["darts", "unroll"])
def test_a_buffer_that_is_deleted_during_a_run_is_no_longer_looked_for(kind: Any) -> None:
    engine = program(Config(type=kind, unroll_steps=2))
    engine.lower.module[0].register_buffer("mask", torch.ones(()))
    engine.lower.module[1] = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh())
    step(engine)
    del engine.lower.module[0].mask
    for _ in range(3):
        step(engine)
    assert [name for _, name in plan_of(engine.lower).surroundings.buffers] == [
        *("running_mean", "running_var", "num_batches_tracked")
    ]


class Counting(nn.Module):
    """Multiplies by a number that each pass in training raises."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes.add_(1)
        return x * (1 + 0.1 * self.passes.clone())


def test_a_buffer_that_comes_during_a_run_is_recorded() -> None:
    """Passes that are repeated have to find it as the step did."""
    engine = program(Config(type=Unroll(), unroll_steps=2))
    step(engine)
    engine.lower.module[1] = nn.Sequential(nn.Tanh(), Counting())
    for _ in range(3):
        step(engine)
    recorded = engine.lower.step_state.trajectory.updates
    assert [[float(value) for _, value in update.buffers] for update in recorded] == [[1.0], [2.0]]


def test_a_batch_norm_that_comes_during_a_run_is_as_before_after_a_step_that_fails() -> None:
    engine = program()
    step(engine)
    grow(engine)
    norm, fails = engine.lower.module[1][0], RuntimeError("asked for")

    def fail() -> None:
        raise fails

    engine.lower.grad_callback = fail
    with pytest.raises(RuntimeError, match="asked for"):
        step(engine)
    assert int(norm.num_batches_tracked) == 0


def test_parameters_may_be_frozen_and_thawed_between_steps() -> None:
    engine = program()
    step(engine)
    first = engine.lower.module[0].weight
    first.requires_grad_(False)
    kept = first.clone()
    step(engine)
    assert torch.equal(first, kept)
    first.requires_grad_(True)
    step(engine)
    assert not torch.equal(first, kept)


def test_hooks_that_are_added_between_steps_are_called() -> None:
    engine = program()
    step(engine)
    seen: list[Tensor] = []
    handle = engine.lower.module[0].weight.register_hook(seen.append)
    step(engine)
    assert len(seen) == 1
    handle.remove()
    step(engine)
    assert len(seen) == 1


def test_the_plan_is_described() -> None:
    engine = program()
    said = [line.strip() for line in engine.describe().splitlines() if "plan: " in line]
    assert said == [
        "plan: draw a batch; loss; gradient by its own parameters and those of lower; "
        "FiniteDifference through lower; SGD.step; ProgressLine.after_step",
        "plan: draw a batch; record it; loss; gradient; SGD.step; ProgressLine.after_step",
    ]
    grow(engine)
    assert "loss, other networks' buffers put back" in engine.describe()


class Watching(Hook):
    """Sees every moment of a step."""

    changes_gradients = False

    def before_step(self, *given: Any) -> None: ...

    def accepts(self, *given: Any) -> bool:
        return True

    def after_gradient(self, *given: Any) -> None: ...

    def after_step(self, *given: Any) -> None: ...


def test_the_plan_names_hooks_where_they_are_called() -> None:
    """Gradients are corrected before they are clipped, of the problems that are named."""
    lower = small(Inner, "inner", config=Config(gradient_clipping=1.0))
    engine = bilevel(inner=lower, hooks=[VarianceReduction(["inner"]), Watching()])
    upper, below = (s for s in engine.describe().splitlines() if "plan: " in s)
    said = [part.strip() for part in below.split("plan: ")[1].split(";")]
    assert said == [
        "Watching.before_step",
        "draw a batch",
        "record it",
        "loss",
        "gradient",
        "Watching.accepts",
        "VarianceReduction.after_gradient",
        "Watching.after_gradient",
        "clip",
        "SGD.step",
        "ProgressLine.after_step",
        "VarianceReduction.after_step",
        "Watching.after_step",
    ]
    assert "VarianceReduction.after_gradient" not in upper
    assert "Watching.after_gradient; SGD.step" in upper
