"""Online confident learning in a program: every training step is collected once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.zoo import Judge, over
from torch import Tensor, nn

from metaweight import (
    SAMA,
    Config,
    ConfigurationError,
    ConjugateGradient,
    FiniteDifference,
    ImplicitProblem,
    Neumann,
    ReweightedProblem,
    Reweighting,
    Unroll,
    ZeroOrder,
)
from metaweight.noise import OnlineConfidentLearning, OnlineConfidentLearningHook, WithCriterion

EPOCH, STEPS = 3, 8


def batches(seed: int, number: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(number):
        x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
        y = (x @ truth).argmax(1)
        wrong = torch.rand(16, generator=generator) < 0.3
        found.append((x, torch.where(wrong, (y + 1) % 3, y)))
    return found


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.s


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        return self.module.criterion(self.module(x), y, alpha=self.upper().sigmoid())


class Weighted(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        x, y = batch
        self.module.criterion.reduction = "none"
        return self.module.criterion(self.module(x), y)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return (self.upper() * losses).sigmoid()


def network() -> WithCriterion:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    return WithCriterion(net, OnlineConfidentLearning(3, dtype=torch.float64))


def program(
    kind: Any, lower: Any = Lower, hooks: Any = None, engine: Any = None, **config: Any
) -> Any:
    """The upper problem does not move, so that the lower run is that of a plain loop."""
    net, scalar = network(), Scalar()
    low = lower(
        "lower",
        Config(type=kind, **config),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=batches(1, EPOCH),
    )
    top = Judge(
        "upper",
        None,
        scalar,
        torch.optim.SGD(scalar.parameters(), lr=0.0),
        train_data_loader=batches(2, 2),
    )
    return over(
        top,
        low,
        hooks=[OnlineConfidentLearningHook()] if hooks is None else hooks,
        train_iters=STEPS,
        **engine or {},
    )


def plain_loop(weighted: bool = False) -> WithCriterion:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(STEPS):
        if step and step % EPOCH == 0:
            net.criterion.reset()
        x, y = batches(1, EPOCH)[step % EPOCH]
        optimizer.zero_grad()
        # Where losses are weighted, the weights are sigmoid(0).
        ((0.5 if weighted else 1.0) * net.criterion(net(x), y)).backward()
        optimizer.step()
    return net


TYPES = {
    "darts": FiniteDifference(),
    "sama": SAMA(alpha=0.01),
    "unroll": Unroll(),
    "unroll kept": Unroll(memory="full"),
    "neumann": Neumann(iterations=2, alpha=0.1),
    "cg": ConjugateGradient(iterations=2, damping=10.0),
    "zero order": ZeroOrder(),
}


@pytest.mark.parametrize("unroll_steps", [1, 2])
@pytest.mark.parametrize("name", TYPES)
def test_a_bilevel_run_collects_what_a_plain_loop_does(name: str, unroll_steps: int) -> None:
    run = program(TYPES[name], unroll_steps=unroll_steps)
    run.run()
    expected = plain_loop().state_dict()
    assert expected["criterion.counts"].sum() > 0
    for key, value in run.lower.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.parametrize("derivative", ["central_difference", "one_sided", "forward_mode"])
def test_a_reweighted_run_does_too(derivative: Any) -> None:
    run = program(Reweighting(derivative=derivative), Weighted)
    run.run()
    expected = plain_loop(weighted=True).state_dict()
    for key, value in run.lower.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12, msg=key)


def test_micro_batches_are_collected_once_each() -> None:
    run = program("darts", gradient_accumulation=2)
    seen = 0
    for _ in range(EPOCH):
        run.global_step += 1
        run.train_step()
        seen = int(run.lower.module.criterion.counts.sum())
    assert 0 < seen <= EPOCH * 16
    x, y = batches(1, EPOCH)[0]
    alone = network()
    alone.criterion(alone(x), y)
    first = program("darts", gradient_accumulation=2)
    first.train_step()
    assert torch.equal(first.lower.module.criterion.counts, alone.criterion.counts)


def test_targets_change_at_the_end_of_epochs_only() -> None:
    run = program("darts")
    criterion = run.lower.module.criterion
    run.hooks.run_start(run)
    changes = []
    for step in range(1, STEPS + 1):
        before = criterion.targets.clone()
        run.train_step()
        if not torch.equal(before, criterion.targets):
            changes.append(step)
    assert changes == [4, 7]


def test_state_is_saved_with_the_problem() -> None:
    run, other = program("darts"), program("darts")
    run.run()
    other.lower.load_state_dict(run.lower.state_dict())
    criterion = other.lower.module.criterion
    assert torch.equal(criterion.sums, run.lower.module.criterion.sums)
    assert torch.equal(criterion.targets, run.lower.module.criterion.targets)


def test_a_criterion_outside_the_module_collects_too_much() -> None:
    class Outside(Lower):
        def training_step(self, batch: Any) -> Tensor:
            self.criterion(self.module(batch[0]), batch[1])
            return super().training_step(batch)

    run = program("darts", Outside, hooks=[])
    run.lower.criterion = OnlineConfidentLearning(3, dtype=torch.float64)
    run.run()
    inside, outside = run.lower.module.criterion.counts.sum(), run.lower.criterion.counts.sum()
    # A central difference evaluates the loss twice more.
    assert outside > 2.5 * inside


def test_a_criterion_outside_the_module_is_refused() -> None:
    run = program("darts")
    run.lower.criterion = OnlineConfidentLearning(3)
    with pytest.raises(ConfigurationError, match="'criterion' of problem 'lower' is not part"):
        run.run()


def test_a_program_without_any_is_refused() -> None:
    run = program("darts")
    run.lower.module.criterion = nn.CrossEntropyLoss()
    with pytest.raises(ConfigurationError, match=r"no OnlineConfidentLearning .* upper, lower"):
        run.run()


def test_roll_back_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="use roll_back=False"):
        program("darts", engine={"roll_back": True}).run()
