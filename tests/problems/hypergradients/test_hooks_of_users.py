"""Hooks that users register on parameters, optimizers and engines, in programs of two levels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.methods import GRADIENT_METHODS
from support.small import Point
from support.zoo import over
from torch import Tensor

from metaweight import (
    Config,
    ConjugateGradient,
    Engine,
    Hook,
    ImplicitProblem,
    Nystrom,
    ReweightedProblem,
    Unroll,
    ZeroOrder,
)

RATE, MOMENTUM, STEPS = 0.1, 0.5, 3


def loss_of(w: Tensor, theta: Tensor, batch: Tensor) -> Tensor:
    return (torch.sin(w * theta) + 0.3 * (w - batch) ** 2 * theta).mean()


def upper_loss(w: Tensor, theta: Tensor, batch: Tensor) -> Tensor:
    return ((w - batch) ** 2).sum() + 0.1 * (theta**2).sum()


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return loss_of(self.module.w, self.upper.module.w, batch)


class Weighted(ReweightedProblem):
    """The same kind of loss as a weighted mean, for the methods that reweight."""

    def sample_losses(self, batch: Any) -> Tensor:
        return torch.sin(self.module.w) + 0.3 * (self.module.w - batch) ** 2

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        del batch
        return torch.sigmoid(self.upper.module.w + losses)


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return upper_loss(self.lower.module.w, self.module.w, batch)


def numbers(seed: int, count: int) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(3, generator=drawn, dtype=torch.float64) for _ in range(count)]


def program(
    method: Any,
    *,
    kind: type[ImplicitProblem] = Lower,
    accumulation: int = 1,
    steps: int = STEPS,
    train_iters: int = STEPS,
    **settings: Any,
) -> Engine:
    low, up = Point(0.5, -0.4, 0.8), Point(0.9, 1.1, 0.7)
    lower = kind(
        "lower",
        Config(type=method, unroll_steps=steps, gradient_accumulation=accumulation),
        low,
        torch.optim.SGD(low.parameters(), RATE, momentum=MOMENTUM),
        train_data_loader=numbers(0, 6),
    )
    step = torch.optim.SGD(up.parameters(), lr=1.0)
    upper = Upper("upper", None, up, step, train_data_loader=numbers(1, 2))
    return over(upper, lower, train_iters=train_iters * accumulation, **settings)


def halves(gradient: Tensor) -> Tensor:
    return gradient * 0.5


def clamps(gradient: Tensor) -> Tensor:
    return gradient.clamp(-0.05, 0.12)


def normalises(gradient: Tensor) -> Tensor:
    return gradient / (gradient.norm() + 0.1)


def writes(gradient: Tensor) -> None:
    gradient.mul_(0.7 + gradient.detach().abs().clone())


def naive(hook: Callable[[Tensor], Any], accumulation: int) -> Tensor:
    """The derivative of the upper loss by autograd through the steps, hooks included."""
    w = torch.tensor([0.5, -0.4, 0.8], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.9, 1.1, 0.7], dtype=torch.float64, requires_grad=True)
    batches, speed = iter(numbers(0, 6)), torch.zeros(3, dtype=torch.float64)
    place: Tensor = w
    for _ in range(STEPS):
        total = torch.zeros(3, dtype=torch.float64)
        for _ in range(accumulation):
            loss = loss_of(place, theta, next(batches)) / accumulation
            (gradient,) = torch.autograd.grad(loss, place, create_graph=True)
            changed = gradient.clone()
            returned = hook(changed)
            total = total + (changed if returned is None else returned)
        speed = MOMENTUM * speed + total
        place = place - RATE * speed
    (found,) = torch.autograd.grad(upper_loss(place, theta, numbers(1, 2)[0]), theta)
    return found


UNROLLED = {
    "exact": (Unroll(), 1e-12),
    "forward over reverse": (Unroll(product="forward_over_reverse"), 1e-12),
    "kept graphs": (Unroll(memory="full"), 1e-12),
    # Errors of differences are of the order of the squared length, and of the length.
    "difference": (Unroll(product="finite_difference", alpha=1e-4), 1e-7),
    "one-sided": (Unroll(product="one_sided", alpha=1e-6), 1e-5),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("hook", [halves, clamps, normalises, writes])
@pytest.mark.parametrize("name", UNROLLED)
def test_an_unrolled_hypergradient_follows_hooks_on_gradients(
    name: str, hook: Any, accumulation: int
) -> None:
    method, tolerance = UNROLLED[name]
    engine = program(method, accumulation=accumulation)
    calls: list[Tensor] = []
    engine.lower.module.w.register_hook(lambda g: (calls.append(g), hook(g))[1])
    before = engine.upper.module.w.detach().clone()
    engine.run()
    found = before - engine.upper.module.w.detach()
    torch.testing.assert_close(found, naive(hook, accumulation), rtol=tolerance, atol=tolerance)
    assert len(calls) == STEPS * accumulation


def test_a_run_that_is_resumed_inside_a_loop_follows_them_too(tmp_path: Path) -> None:
    ends = []
    for stop in (STEPS, 2):
        engine = program(Unroll(), train_iters=stop)
        engine.lower.module.w.register_hook(normalises)
        engine.run()
        if stop < STEPS:
            engine.save(tmp_path / "state.pt")
            engine = program(Unroll())
            engine.lower.module.w.register_hook(normalises)
            engine.load(tmp_path / "state.pt")
            engine.run()
        ends.append(engine.upper.module.w.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


METHODS = {**GRADIENT_METHODS, "nystrom": Nystrom(rank=2, damping=1.0), "zero order": ZeroOrder()}
SEES_NO_HOOKS = ("sama, exact", "zero order")


def kind_for(name: str) -> type[ImplicitProblem]:
    return Weighted if name.startswith("reweighting") else Lower


def counted(calls: dict[str, int], name: str) -> Callable[..., None]:
    def count(*given: Any) -> None:
        del given
        calls[name] = calls.get(name, 0) + 1

    return count


@pytest.mark.parametrize("name", METHODS)
def test_hooks_are_called_once_a_step_and_change_nothing_when_they_only_look(name: str) -> None:
    """Under every method, on both levels, with two micro-batches a step."""
    ends = []
    calls: dict[str, int] = {}
    for watched in (False, True):
        engine = program(METHODS[name], kind=kind_for(name), accumulation=2)
        if watched:
            for problem in (engine.lower, engine.upper):
                w, optimizer = problem.module.w, problem.optimizer
                w.register_hook(counted(calls, f"{problem.name} gradient"))
                w.register_post_accumulate_grad_hook(counted(calls, f"{problem.name} after"))
                optimizer.register_step_pre_hook(counted(calls, f"{problem.name} before step"))
                optimizer.register_step_post_hook(counted(calls, f"{problem.name} after step"))
        with _expecting_warnings(watched and name.startswith(("unroll", "sama, exact", "zero"))):
            engine.run()
        ends.append([engine.lower.module.w.detach(), engine.upper.module.w.detach()])
    # A difference measures its first gradient again where a hook may have changed the recorded.
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-12)
    lower = dict.fromkeys(["lower gradient", "lower after"], 2 * STEPS)
    upper = dict.fromkeys(["upper gradient", "upper after"], 1)
    steps = {f"lower {when} step": STEPS for when in ("before", "after")}
    steps |= {f"upper {when} step": 1 for when in ("before", "after")}
    assert calls == {**lower, **upper, **steps}


def _expecting_warnings(expected: bool) -> Any:
    return pytest.warns(UserWarning, match="cannot see") if expected else nullcontext()


@pytest.mark.parametrize("name", METHODS)
def test_a_hook_of_the_upper_problem_changes_the_whole_hypergradient_once(name: str) -> None:
    moves = []
    for hook in (None, halves, clamps):
        engine = program(METHODS[name], kind=kind_for(name))
        w = engine.upper.module.w
        if hook is not None:
            w.register_hook(hook)
        before = w.detach().clone()
        engine.run()
        moves.append(before - w.detach())
    assert moves[0].abs().max() > 0.15
    torch.testing.assert_close(moves[1], moves[0] / 2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moves[2], clamps(moves[0]), rtol=1e-12, atol=1e-14)


def test_a_hook_after_accumulation_sees_the_whole_hypergradient() -> None:
    engine = program(Unroll())
    w = engine.upper.module.w
    seen: list[Tensor] = []
    w.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    before = w.detach().clone()
    engine.run()
    torch.testing.assert_close(torch.stack(seen), (before - w.detach())[None])


class Doubles(Hook):
    def after_gradient(self, engine: Engine, problem: Any) -> None:
        del engine
        problem.module.w.grad.mul_(2)


class Looks(Doubles):
    changes_gradients = False

    def after_gradient(self, engine: Engine, problem: Any) -> None:
        del engine, problem


def halve_after(parameter: Tensor) -> None:
    parameter.grad.mul_(0.5)


def clamp_after(optimizer: Any, args: Any, kwargs: Any) -> None:
    del args, kwargs
    for p in optimizer.param_groups[0]["params"]:
        p.data.clamp_(-1, 1)


CHANGES: dict[str, Callable[[Engine], Any]] = {
    "A hook of register_post_accumulate_grad_hook on parameter 'w'": lambda engine: (
        engine.lower.module.w.register_post_accumulate_grad_hook(halve_after)
    ),
    "The step hook clamp_after of SGD": lambda engine: (
        engine.lower.optimizer.register_step_post_hook(clamp_after)
    ),
    "The step hook .*<lambda> of SGD": lambda engine: engine.lower.optimizer.register_step_pre_hook(
        lambda *given: None
    ),
    "Lower.grad_callback": lambda engine: setattr(engine.lower, "grad_callback", lambda: None),
    "Lower.param_callback": lambda engine: setattr(engine.lower, "param_callback", lambda: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_an_unrolled_hypergradient_cannot_see_is_warned_of_once_by_name(change: str) -> None:
    engine = program(Unroll(), train_iters=2 * STEPS)
    CHANGES[change](engine)
    message = rf"{change} may change the steps of problem 'lower' in a way Unroll cannot see"
    with pytest.warns(UserWarning, match=message) as caught:
        engine.run()
    assert len(caught) == 1


def test_hooks_of_the_engine_that_change_gradients_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="Doubles.after_gradient may change the steps"):
        program(Unroll(), hooks=[Doubles()])
    program(Unroll(), hooks=[Looks()])
    program(ConjugateGradient(), hooks=[Doubles()])


@pytest.mark.parametrize("name", SEES_NO_HOOKS)
def test_hooks_on_gradients_are_warned_of_where_they_are_not_followed(name: str) -> None:
    engine = program(METHODS[name])
    engine.lower.module.w.register_hook(halves)
    with pytest.warns(UserWarning, match="A hook of register_hook on parameter 'w' may"):
        engine.run()


def test_the_check_names_what_it_cannot_see() -> None:
    engine = program(Unroll())
    engine.lower.optimizer.register_step_post_hook(clamp_after)
    (report,) = engine.check_hypergradient()
    assert not report.trustworthy
    assert "The step hook clamp_after of SGD may change the steps of problem 'lower'" in str(report)
    followed = program(Unroll())
    followed.lower.module.w.register_hook(normalises)
    (report,) = followed.check_hypergradient()
    assert report.trustworthy, str(report)


@torch.no_grad()
def halves_without_graph(gradient: Tensor) -> Tensor:
    return gradient * 0.5


@torch.no_grad()
def writes_without_graph(gradient: Tensor) -> None:
    gradient.mul_(0.5)


def writes_to_data(gradient: Tensor) -> None:
    gradient.data.mul_(0.5)


@pytest.mark.parametrize("hook", [halves_without_graph, writes_without_graph, writes_to_data])
def test_a_hook_without_a_graph_is_warned_of(hook: Any) -> None:
    engine = program(Unroll())
    engine.lower.module.w.register_hook(hook)
    with pytest.warns(UserWarning, match="leaves no graph, of register_hook on parameter 'w', may"):
        engine.run()
    moved = program(Unroll())
    moved.lower.module.w.register_hook(halves)
    moved.run()
    torch.testing.assert_close(engine.lower.module.w, moved.lower.module.w)
