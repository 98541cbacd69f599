"""Steps that are followed back as they were taken: by their settings, loops, hooks and parameters.

The problems are quadratics of one number, in float64, and expected hypergradients come from the
same steps written out and differentiated by autograd: equal to 1e-12, by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small import Point
from torch import Tensor, nn

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    HypergradientError,
    ImplicitProblem,
    IterativeProblem,
    LossError,
    ReweightedProblem,
    Reweighting,
    Unroll,
    ZeroOrder,
)

RATE = 0.1


class Lower(IterativeProblem):
    """``½ |w - θ|²``, with θ of the problem ``b``."""

    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * ((self.module.w - self.b.module.w) ** 2).sum()


class Upper(ImplicitProblem):
    """``|w - 3|²`` of the problem ``low``; keeps its gradients in ``cfg``."""

    def training_step(self, batch: Any) -> Tensor:
        return ((self.low.module.w - 3) ** 2).sum()

    def grad_callback(self) -> None:
        self.cfg.append(self.module.w.grad.clone())


def upper(name: str, module: nn.Module, rate: float = 0.0, kind: Any = Upper) -> Any:
    return kind(
        name,
        Config(allow_absent_hypergradient=True),
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=rate),
        train_data_loader=[0],
        extra_config=[],
    )


def lower(kind: Any, module: nn.Module, name: str = "low", **settings: Any) -> Any:
    return kind(
        name,
        Config(**settings),
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=RATE),
        train_data_loader=[0],
    )


def run(lowers: Any, uppers: Any, steps: int) -> None:
    edges = {"u2l": {u: lowers for u in uppers}, "l2u": {low: uppers for low in lowers}}
    config = EngineConfig(train_iters=steps, progress=False)
    Engine([*lowers, *uppers], config, edges).run()


def slope(of: Callable[[Tensor], Tensor], *at: float) -> Tensor:
    theta = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    ((of(theta) - 3) ** 2).sum().backward()
    assert theta.grad is not None
    return theta.grad


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", ["flat", "full"])
def test_settings_are_those_before_another_upper_problem_has_stepped(memory: str) -> None:
    class Learned(Lower):
        def learned_settings(self) -> Any:
            return {"lr": self.a.module.w.exp().sum()}

    low = lower(Learned, Point(1.0), type=Unroll(memory=memory), unroll_steps=2)
    a, b = upper("a", Point(-1.0), rate=1.0), upper("b", Point(0.7))
    run([low], [a, b], 2)
    rate = torch.tensor(-1.0, dtype=torch.float64).exp()

    def steps(theta: Tensor) -> Tensor:
        w = torch.ones(1, dtype=torch.float64)
        for _ in range(2):
            w = w - rate * (w - theta)
        return w

    assert_near(b.cfg[0], slope(steps, 0.7))


def test_settings_may_depend_on_the_step() -> None:
    class Scheduled(Lower):
        def learned_settings(self) -> Any:
            return {"lr": self.b.module.w[(self.count - 1) % 3].exp()}

        def training_step(self, batch: Any) -> Tensor:
            return 0.5 * ((self.module.w - 1) ** 2).sum()

    b = upper("b", Point(-2.0, -2.5, -1.5))
    run([lower(Scheduled, Point(2.0), unroll_steps=3)], [b], 6)

    def steps(theta: Tensor, first: float) -> Tensor:
        w = torch.full((1,), first, dtype=torch.float64)
        for rate in theta:
            w = w - rate.exp() * (w - 1)
        return w

    second = float(steps(torch.tensor([-2.0, -2.5, -1.5], dtype=torch.float64), 2.0))
    for found, first in zip(b.cfg, (2.0, second), strict=True):
        assert_near(found, slope(lambda t, first=first: steps(t, first), -2.0, -2.5, -1.5))


def test_settings_of_something_else_are_refused() -> None:
    class Counting(Lower):
        calls = 0

        def learned_settings(self) -> Any:
            self.calls += 1
            return {"lr": self.b.module.w.sum().exp() / self.calls}

    low = lower(Counting, Point(1.0), unroll_steps=2)
    said = r"gave lr=.* for step 2, and gives .* when that is differentiated; let it depend on"
    with pytest.raises(HypergradientError, match=said):
        run([low], [upper("b", Point(-1.0))], 2)


class FromStart(Lower):
    """``½ |w - 1|²`` from θ."""

    def initial_parameters(self) -> Any:
        return {"w": self.b.module.w}

    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * ((self.module.w - 1) ** 2).sum()


class Reset(Lower):
    """From 2 in every loop."""

    def on_inner_loop_start(self) -> None:
        with torch.no_grad():
            self.module.w.fill_(2.0)


def from_start(theta: Tensor, steps: int = 1) -> Tensor:
    for _ in range(steps):
        theta = theta - RATE * (theta - 1)
    return theta


def reset(theta: Tensor) -> Tensor:
    return 2.0 - RATE * (2.0 - theta)


@pytest.mark.parametrize(("kind", "one_step"), [(FromStart, from_start), (Reset, reset)])
def test_a_loop_that_has_begun_again_is_followed_to_its_own_start(
    kind: Any, one_step: Callable[[Tensor], Tensor]
) -> None:
    """The upper problem waits for three steps of ``other``: then ``low`` is in its second loop."""
    low = lower(kind, Point(9.0), unroll_steps=2)
    other = lower(kind, Point(0.0), "other", unroll_steps=3)

    class OfBoth(Upper):
        def training_step(self, batch: Any) -> Tensor:
            return super().training_step(batch) + 0 * self.other.module.w.sum()

    b = upper("b", Point(0.5), kind=OfBoth)
    run([low, other], [b], 3)
    assert_near(b.cfg[0], slope(one_step, 0.5))


@pytest.mark.parametrize("method", [Unroll(), ZeroOrder(samples=2)])
def test_a_warm_up_reaches_back_to_no_start(method: Any) -> None:
    """The two recorded steps are the last of six, whose start is not theirs; later loops' is."""

    class Implicit(ImplicitProblem):
        initial_parameters = FromStart.initial_parameters
        training_step = FromStart.training_step

    low = lower(Implicit, Point(9.0), type=method, unroll_steps=2, warmup_steps=4)
    b = upper("b", Point(0.5))
    run([low], [b], 8)
    assert_near(b.cfg[0], torch.zeros(1, dtype=torch.float64))
    expected = slope(lambda theta: from_start(theta, 2), 0.5)
    # Antithetic differences of a square are exact in the direction drawn, up to its length.
    if isinstance(method, Unroll):
        assert_near(b.cfg[1], expected)
    else:
        assert b.cfg[1] * expected > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_hooks_of_parameters_may_read_upper_ones(accumulation: int) -> None:
    low = lower(Lower, Point(2.0), unroll_steps=2, gradient_accumulation=accumulation)
    b = upper("b", Point(0.5))
    low.module.w.register_hook(lambda g: g * b.module.w.sum() + g**2)
    run([low], [b], 2 * accumulation)

    def steps(theta: Tensor) -> Tensor:
        w = torch.full((1,), 2.0, dtype=torch.float64)
        for _ in range(2):
            g = (w - theta) / accumulation
            w = w - RATE * accumulation * (g * theta + g**2)
        return w

    assert_near(b.cfg[0], slope(steps, 0.5))


def test_a_parameter_that_is_frozen_since_is_told_of() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = Point(2.0).w, Point(1.0).w

    class Blocks(IterativeProblem):
        def training_step(self, batch: Any) -> Tensor:
            return 0.5 * ((self.module.a * self.module.w - self.b.module.w) ** 2).sum()

        def get_batch(self) -> int:
            self.module.a.requires_grad_(self.count % 4 in (1, 2))
            return 0

    with pytest.warns(UserWarning, match="has frozen a parameter since a step of the loop that tr"):
        run([lower(Blocks, Two(), unroll_steps=4)], [upper("b", Point(0.5))], 4)


class ByList(ImplicitProblem):
    """Reads its parameters from a list that was made before."""

    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * sum(((p - self.b.module.w) ** 2).sum() for p in self.cfg)


class WeightedByList(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        return sum((p - torch.arange(3.0).double()) ** 2 for p in self.cfg)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.sigmoid(self.b.module.w * losses)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (ByList, Unroll(memory="full")),
        (ByList, Unroll(memory="auto")),
        (ByList, Unroll(product="forward_over_reverse")),
        (WeightedByList, Reweighting("forward_mode")),
        (WeightedByList, Unroll()),
    ],
)
def test_references_of_the_users_own_are_refused_where_others_stand_in(
    kind: Any, method: Any
) -> None:
    low = lower(kind, Point(1.0), type=method)
    low.cfg = list(low.module.parameters())
    said = r"The loss of problem 'low' reads the parameter 'w' by a reference of its own.*self\.mod"
    with pytest.raises(LossError, match=said):
        run([low], [upper("b", Point(0.5))], 2)


@pytest.mark.parametrize("method", ["darts", Unroll(), "cg"])
def test_references_of_the_users_own_serve_where_none_do(method: Any) -> None:
    found = []
    for cached in (False, True):
        low = lower(ByList, Point(1.0), type=method)
        low.cfg = list(low.module.parameters()) if cached else low.module.parameters
        if not cached:
            low.training_step = lambda batch, low=low: (
                0.5 * ((low.module.w - low.b.module.w) ** 2).sum()
            )
        b = upper("b", Point(0.5))
        run([low], [b], 1)
        found.append(b.cfg[0])
    assert_near(*found)
