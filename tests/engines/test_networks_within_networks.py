"""Networks that hold another problem's network: roll-back and replay leave what is not their own.

Programs are of numbers, written out by hand; 1e-9 is rounding, divided by the length of a central
difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.hypergradients.value import Rollouts
from metaweight.problems.state.owned import owned
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, ZeroOrder

RATE = 0.1


class Number(nn.Module):
    """A number, beside other networks and a count of passes."""

    def __init__(self, value: float, *within: nn.Module) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.within = nn.ModuleList(within)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self) -> Tensor:
        self.passes += 1
        return self.w


class Numbers(ImplicitProblem):
    """``cfg``: the numbers that it is drawn to, or the problems that hold them."""

    def training_step(self, batch: Any) -> Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for of, to in self.cfg:
            loss = loss + 0.5 * ((self.number(of) - self.number(to)) ** 2).sum()
        return loss

    def number(self, of: str | float) -> Tensor | float:
        if isinstance(of, float):
            return of
        holder = self if of == self.name else getattr(self, of)
        number: Tensor = holder.module()
        return number


def problem(name: str, net: Number, losses: Any, **config: Any) -> Numbers:
    optimizer = torch.optim.SGD([net.w], lr=RATE)
    made = Numbers(name, Config(**config), net, optimizer, train_data_loader=[0])
    made.cfg = losses
    return made


def two_levels(within: str, **settings: Any) -> Engine:
    theta = Number(0.5)
    net = Number(2.0, *([theta] if within == "network" else []))
    if within == "parameter":
        net.theta = theta.w
    low = problem("low", net, [("low", "up")], type="darts")
    up = problem("up", theta, [("low", 3.0)])
    config = EngineConfig(strategy="cpu", roll_back=True, **settings)
    return Engine([low, up], config, {"u2l": {up: [low]}, "l2u": {low: [up]}})


def by_hand(steps: int) -> tuple[float, float]:
    w, theta = 2.0, 0.5
    for _ in range(steps):
        theta -= RATE * (w - RATE * (w - theta) - 3)
        w -= RATE * (w - theta)
    return w, theta


def numbers(engine: Engine) -> list[float]:
    return [p.module.w.item() for p in engine.problems]


@pytest.mark.parametrize("within", ["nothing", "parameter", "network"])
def test_what_the_upper_problem_trains_stays(within: str) -> None:
    engine = two_levels(within, train_iters=3)
    engine.run()
    assert numbers(engine) == pytest.approx(by_hand(3), rel=1e-9)


def three_levels(*, within: bool) -> Engine:
    low_net = Number(2.0)
    mid_net = Number(1.0, *([low_net] if within else []))
    low = problem("low", low_net, [("low", "mid")], type="darts")
    mid = problem("mid", mid_net, [("low", 1.0), ("mid", "top")], type="darts", unroll_steps=2)
    top = problem("top", Number(0.5), [("mid", 3.0)])
    config = EngineConfig(strategy="cpu", roll_back=True, train_iters=4)
    edges = {"u2l": {mid: [low], top: [mid]}, "l2u": {low: [mid], mid: [top]}}
    return Engine([low, mid, top], config, edges)


def test_a_network_within_that_of_the_next_level_is_not_rolled_back() -> None:
    found = []
    for within in (False, True):
        engine = three_levels(within=within)
        engine.run()
        found.append(numbers(engine))
    assert found[1] == found[0]


@pytest.mark.parametrize("within", ["parameter", "network"])
def test_a_snapshot_inside_a_loop_is_saved_and_loaded(within: str, tmp_path: Path) -> None:
    def made() -> Engine:
        theta = Number(0.5)
        net = Number(2.0, *([theta] if within == "network" else []))
        if within == "parameter":
            net.theta = theta.w
        low = problem("low", net, [("low", "up")], type="darts", unroll_steps=3)
        up = problem("up", theta, [("low", 3.0)])
        config = EngineConfig(strategy="cpu", roll_back=True, train_iters=6)
        return Engine([low, up], config, {"u2l": {up: [low]}, "l2u": {low: [up]}})

    whole, first, second = made(), made(), made()
    whole.run()
    for _ in range(4):
        first.train_step()
    assert list(first.snapshots) == ["low"]
    first.save(tmp_path / "saved.pt")
    second.load(tmp_path / "saved.pt")
    for _ in range(2):
        second.train_step()
    assert numbers(second) == numbers(whole)


def test_what_is_a_problems_own() -> None:
    engine = three_levels(within=True)
    low, mid, _ = engine.problems
    assert owned(low).parameters == [low.module.w]
    assert [slot[0] for slot in owned(low).slots] == [low.module]
    assert owned(mid).parameters == [mid.module.w]
    assert [slot[0] for slot in owned(mid).slots] == [mid.module]
    assert owned(mid).modules == [mid.module, mid.module.within]
    view = lower_view(mid)
    assert view.owns(mid.module.w) and view.owns(mid.module)
    assert not view.owns(low.module.w) and not view.owns(low.module)


def test_of_two_upper_problems_the_one_that_has_stepped_is_put_back_after_a_replay() -> None:
    """Both are within the network below; the nearer one has stepped since."""
    near, far = Number(0.5), Number(1.5)
    net, losses = Number(2.0, near, far), [("low", "a"), ("low", "b")]
    low = problem("low", net, losses, type=ZeroOrder(samples=1))
    a, b = problem("a", near, [("low", 3.0)]), problem("b", far, [("low", -3.0)])
    edges = {"u2l": {a: [low], b: [low]}, "l2u": {low: [a, b]}}
    engine = Engine([low, a, b], EngineConfig(strategy="cpu"), edges)
    engine.train_step()
    now = near.w.item()
    assert now != 0.5
    with Rollouts(lower_view(low), [far.w]) as rollouts:
        rollouts.run(rollouts.updates)
        assert near.w.item() == now
    assert near.w.item() == now
