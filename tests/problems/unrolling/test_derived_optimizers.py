"""Optimizers of classes derived from torch's: the step that is differentiated is the one taken.

Compared with the same steps in one graph, written out by hand in double precision; 1e-9 is
rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from metaweight.problems.unrolling.rules import rule_kind
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from metaweight import SAMA, Config, ConfigurationError, Engine, HypergradientError, ImplicitProblem
from metaweight import ZeroOrder as ZeroOrderOfUsers

START = [[2.0, 1.0], [0.0, -1.0]]
SCALES = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
RATE = 0.01
STEPS = 3
ZeroOrder = functools.partial(ZeroOrderOfUsers, samples=2)


class Table(nn.Module):
    def __init__(self, values: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * ((self.module.w * SCALES - self.upper.module.w) ** 2).sum()


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return ((self.lower.module.w - 3) ** 2).sum()

    def grad_callback(self) -> None:
        self.seen = self.module.w.grad.clone()


def engine(make: Callable[[Any], Any], method: Any = "unroll") -> Engine:
    net, theta = Table(START), Table(0.5)
    steps = 1 if isinstance(method, SAMA) else STEPS
    lower = Lower(
        "lower",
        Config(type=method, unroll_steps=steps),
        net,
        make(net.parameters()),
        train_data_loader=[0],
    )
    upper = Upper("upper", None, theta, SGD(theta.parameters(), lr=0.0), train_data_loader=[0])
    return Engine.bilevel(upper, lower, train_iters=steps, progress=False)


def found(make: Callable[[Any], Any], method: Any = "unroll") -> tuple[float, Tensor]:
    run = engine(make, method)
    run.run()
    return float(run.upper.seen), run.lower.module.w.detach()


def by_hand(
    of_gradient: Callable[[Tensor], Tensor],
    momentum: float = 0.0,
    dampening: float = 0.0,
    *,
    nesterov: bool = False,
) -> tuple[float, Tensor]:
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    w, buffer = torch.tensor(START, dtype=torch.float64), None
    for _ in range(STEPS):
        g = of_gradient((w * SCALES - theta) * SCALES)
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        w = w - RATE * (g + momentum * buffer if nesterov else buffer)
    (gradient,) = torch.autograd.grad(((w - 3) ** 2).sum(), theta)
    return float(gradient), w.detach()


def centred(g: Tensor) -> Tensor:
    return g - g.mean(1, keepdim=True)


class Own(SGD):
    """Changes gradients before the step; ``change`` tells how."""

    change = staticmethod(centred)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = self.change(p.grad)
        return super().step(closure)


class Scaled(Own):
    """Has an attribute of its own."""

    def __init__(self, params: Any, scale: float, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.scale = scale

    def change(self, g: Tensor) -> Tensor:
        return self.scale * g


class Rows(SGD):
    """Keeps a number for each row: the mean of its gradients so far."""

    def step(self, closure: Any = None) -> Any:
        (p,) = self.param_groups[0]["params"]
        state = self.state[p]
        before = state.get("rows", torch.zeros_like(p[:, :1]))
        state["rows"] = 0.5 * before + p.grad.mean(1, keepdim=True)
        p.grad = p.grad - state["rows"]
        return super().step(closure)


class Plain(SGD):
    """Takes the step of its base."""


class PlainAdam(AdamW):
    """Takes the step of its base."""


MOMENTA = [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True)]


@pytest.mark.parametrize(("momentum", "dampening", "nesterov"), MOMENTA)
@pytest.mark.parametrize("kind", ["plain", "shape", "attribute"])
def test_the_step_is_that_of_the_class(
    kind: str, momentum: float, dampening: float, nesterov: bool
) -> None:
    make, change = {
        "plain": (Plain, lambda g: g),
        "shape": (Own, centred),
        "attribute": (functools.partial(Scaled, scale=0.5), lambda g: 0.5 * g),
    }[kind]
    settings = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    gradient, w = found(lambda p: make(p, lr=RATE, **settings))
    expected, end = by_hand(change, momentum, dampening, nesterov=nesterov)
    torch.testing.assert_close(w, end, rtol=1e-9, atol=1e-9)
    assert gradient == pytest.approx(expected, rel=1e-9)


def test_state_of_another_shape_is_followed() -> None:
    rows: list[Tensor] = [torch.zeros(2, 1, dtype=torch.float64)]

    def change(g: Tensor) -> Tensor:
        rows.append(0.5 * rows[-1] + g.mean(1, keepdim=True))
        return g - rows[-1]

    gradient, w = found(lambda p: Rows(p, lr=RATE))
    expected, end = by_hand(change)
    torch.testing.assert_close(w, end, rtol=1e-9, atol=1e-9)
    assert gradient == pytest.approx(expected, rel=1e-9)


def test_a_class_that_overrides_nothing_takes_the_rule_of_its_base() -> None:
    assert found(lambda p: PlainAdam(p, lr=RATE))[0] == found(lambda p: AdamW(p, lr=RATE))[0]
    assert (
        found(lambda p: Plain(p, lr=RATE, momentum=0.9))[0]
        == found(lambda p: SGD(p, lr=RATE, momentum=0.9))[0]
    )


def wrapped_by_hand() -> type[SGD]:
    class Wrapped(SGD):
        @functools.wraps(SGD.step)
        def step(self, closure: Any = None) -> Any:
            return None

    return Wrapped


def test_which_rule_is_a_classes() -> None:
    parameters = [nn.Parameter(torch.ones(2))]

    class Deeper(PlainAdam):
        pass

    class First(torch.optim.RMSprop):
        """Whose step torch wraps before that of its base."""

    class Groups(Adam):
        def _init_group(self, *given: Any) -> Any:
            return super()._init_group(*given)

    made: Iterator[Any] = (
        kind(parameters, lr=0.1)
        for kind in (SGD, Plain, Deeper, First, Own, wrapped_by_hand(), Groups, torch.optim.NAdam)
    )
    none = [None] * 4
    assert [rule_kind(o) for o in made] == [SGD, SGD, AdamW, torch.optim.RMSprop, *none]
    scheduled = Plain(parameters, lr=0.1)
    torch.optim.lr_scheduler.ExponentialLR(scheduled, 0.9)
    assert rule_kind(scheduled) is SGD


class Silent(Own):
    """Changes gradients in place, where no graph is recorded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        (p,) = self.param_groups[0]["params"]
        p.grad.mul_(0.5)
        return SGD.step(self, closure)


class ByData(SGD):
    def step(self, closure: Any = None) -> Any:
        (p,) = self.param_groups[0]["params"]
        p.data.add_(p.grad, alpha=-self.param_groups[0]["lr"])


class Harmless(SGD):
    """Only looks at gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert all(p.grad.dim() == 2 for p in self.param_groups[0]["params"] if p.grad is not None)
        return super().step(closure)


@pytest.mark.parametrize("kind", [Silent, ByData])
def test_a_step_without_a_graph_is_refused(kind: type[SGD]) -> None:
    with pytest.raises(HypergradientError, match=rf"{kind.__name__}.step computes.*type='cg'"):
        found(lambda p: kind(p, lr=RATE))
    assert found(lambda p: Harmless(p, lr=RATE))[0] == pytest.approx(by_hand(lambda g: g)[0])


class Wrapper(torch.optim.Optimizer):
    """Steps another optimizer, with the same groups."""

    def __init__(self, base: SGD) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups = base, base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


class Keeps(Own):
    """Has tensors beside its state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=RATE)
        self.slow = {p: p.detach().clone() for p in self.param_groups[0]["params"]}


@pytest.mark.parametrize("method", ["unroll", SAMA(preconditioner="exact"), ZeroOrder()])
def test_what_a_copy_would_change_is_refused(method: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'lower'.*another optimizer, its attribute 'ba"):
        engine(lambda p: Wrapper(SGD(p, lr=RATE, momentum=0.9)), method)
    with pytest.raises(ConfigurationError, match=r"'lower'.*keeps tensors in its attribute 'slow'"):
        engine(Keeps, method)
    found(lambda p: Wrapper(SGD(p, lr=RATE, momentum=0.9)), "darts")


def test_a_replay_takes_the_step_of_a_class_with_an_attribute() -> None:
    """The loss is quadratic, so antithetic directions of one number give its derivative, and their
    mean is that times the mean of their squares."""
    gradient, w = found(lambda p: Scaled(p, 0.5, lr=RATE), ZeroOrder(samples=1, seed=3))
    other, _ = found(lambda p: SGD(p, lr=0.5 * RATE), ZeroOrder(samples=1, seed=3))
    torch.testing.assert_close(w, by_hand(lambda g: 0.5 * g)[1], rtol=1e-9, atol=1e-9)
    assert gradient == pytest.approx(other, rel=1e-9)
