"""A loss that the optimizer maximises: every method differentiates the minimised one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import lower_view
from support.covering import covering
from support.methods import GRADIENT_METHODS
from support.reweighting import Judge, network
from support.small import Point
from support.zoo import over
from torch import Tensor

from metaweight import (
    SAMA,
    Config,
    ConfigurationError,
    Engine,
    FiniteDifference,
    ImplicitProblem,
    Neumann,
    Nystrom,
    Penalty,
    ReweightedProblem,
    Reweighting,
    Unroll,
    ZeroOrder,
)
from metaweight.weighting import MetaWeightNet

METHODS: dict[str, Any] = {
    **GRADIENT_METHODS,
    "darts, multitask": FiniteDifference(multitask=True),
    "zero order": ZeroOrder(samples=2),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda p, **s: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, **s),
    "adam": lambda p, **s: torch.optim.Adam(p, 0.02, weight_decay=0.01, **s),
    "adamw": lambda p, **s: torch.optim.AdamW(p, 0.02, **s),
    "rmsprop": lambda p, **s: torch.optim.RMSprop(p, 0.01, **s),
}


CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Declared(ReweightedProblem):
    """Cross-entropy times ``cfg``; its weights look at the cross-entropy."""

    def sample_losses(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return self.cfg * F.cross_entropy(self.module(inputs), labels, reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        weights: Tensor = self.judge(self.cfg * losses)
        return weights


class Undeclared(ImplicitProblem):
    sample_losses, sample_weights = Declared.sample_losses, Declared.sample_weights

    def training_step(self, batch: Any) -> Tensor:
        losses = self.sample_losses(batch)
        return (self.sample_weights(losses.detach(), batch) * losses).mean()


def trained(kind: Any, method: Any, optimizer: Any, *, maximised: bool) -> Engine:
    """Two steps of each level, which minimise the loss or maximise its negative."""
    torch.default_generator.manual_seed(0)
    net, weights = network().double(), MetaWeightNet(8).double()
    drawn = [(torch.randn(20, 6).double(), torch.randint(0, 4, (20,))) for _ in range(5)]
    lower = kind(
        "classifier",
        Config(type=method),
        net,
        optimizer(net.parameters(), maximize=maximised),
        train_data_loader=drawn[:3],
        extra_config=-1.0 if maximised else 1.0,
    )
    step = torch.optim.SGD(weights.parameters(), lr=1.0)
    upper = Judge("judge", None, weights, step, train_data_loader=drawn[3:])
    engine = over(upper, lower, train_iters=2)
    torch.default_generator.manual_seed(1)
    engine.run()
    return engine


CASES = covering(
    {
        name: list(OPTIMIZERS) if name.startswith(("unroll", "sama")) else ["sgd", "adam"]
        for name in METHODS
    },
    whole=["unroll"],
)


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_it_is_that_of_the_negative_minimised(name: str, optimizer: str) -> None:
    """Differences are of the same numbers with the other sign; only a one-sided unroll looks the
    other way along its vector, which changes its error of order alpha, 1e-6."""
    declared = "reweighting" in name
    kinds = [Declared] if declared else [Declared, Undeclared]
    close = {"rtol": 1e-6, "atol": 1e-6} if name == "unroll, one-sided" else CLOSE
    for kind in kinds:
        ends = []
        for maximised in (False, True):
            engine = trained(kind, METHODS[name], OPTIMIZERS[optimizer], maximised=maximised)
            ends.append([*engine.judge.module.parameters(), *engine.classifier.module.parameters()])
        torch.testing.assert_close(ends[1], ends[0], **close)


PENALTY = Penalty(strength=1e6, steps=1, lr=1.0)


class Lower(ImplicitProblem):
    """``L = -(w - θ)² / 2``, whose maximum is at ``w = θ``."""

    def training_step(self, batch: Any) -> Tensor:
        del batch
        return -((self.module.w - self.upper.module.w) ** 2).sum() / 2


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        del batch
        return ((self.lower.module.w - 3) ** 2).sum() / 2


@pytest.mark.parametrize(
    "method",
    ["darts", "sama", "neumann", "cg", Nystrom(rank=1, damping=1e-9), PENALTY, "unroll"],
)
def test_the_response_to_the_maximum_is_the_identity(method: Any) -> None:
    """After a step of length 1 ``w = θ = 0.5``, and ``dF/dθ = w - 3``."""
    low, up = Point(1.0), Point(0.5)
    lower = Lower(
        "lower",
        Config(type=method),
        low,
        torch.optim.SGD(low.parameters(), 1.0, maximize=True),
        train_data_loader=[torch.zeros(1)],
    )
    step = torch.optim.SGD(up.parameters(), 0.0)
    upper = Upper("upper", None, up, step, train_data_loader=[torch.zeros(1)])
    found: list[Tensor] = []
    upper.grad_callback = lambda: found.append(up.w.grad.clone())  # type: ignore[method-assign]
    over(upper, lower, train_iters=1).run()
    # A penalty of strength s is off by 1 / s.
    torch.testing.assert_close(found, [torch.tensor([-2.5]).double()], rtol=1e-5, atol=0)


def grouped(method: Any) -> Engine:
    torch.default_generator.manual_seed(0)
    net, weights = network().double(), MetaWeightNet(8).double()
    first, *rest = net.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "maximize": True}, {"params": rest}], lr=0.1)
    batch = [(torch.randn(20, 6).double(), torch.randint(0, 4, (20,)))]
    settings: dict[str, Any] = {"train_data_loader": batch, "extra_config": 1.0}
    lower = Declared("classifier", Config(type=method), net, optimizer, **settings)
    step = torch.optim.SGD(weights.parameters(), lr=1.0)
    upper = Judge("judge", None, weights, step, train_data_loader=batch)
    return over(upper, lower, train_iters=1)


def test_some_groups_that_maximise_are_followed_or_refused() -> None:
    for product in ("exact", "one_sided", "finite_difference"):
        engine = grouped(Unroll(product=product))
        engine.run()
        engine.check_hypergradient()
    grouped(ZeroOrder()).run()
    for method in (FiniteDifference(), Reweighting(), Neumann(), SAMA()):
        message = (
            rf"problem 'classifier' maximises the loss in some .*{type(method).__name__} .*unr"
        )
        with pytest.raises(ConfigurationError, match=message):
            grouped(method)


def test_the_view_negates_and_gives_the_loss_itself() -> None:
    engine = trained(Declared, Unroll(), OPTIMIZERS["sgd"], maximised=True)
    lower = lower_view(engine.classifier)
    step = lower.trajectory.window[0]
    given = engine.classifier.training_step(step.batch)
    loss = given["loss"] if isinstance(given, dict) else given
    torch.testing.assert_close(lower.loss(step), -loss)
    torch.testing.assert_close(lower.as_given().loss(step), loss)
