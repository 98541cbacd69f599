"""What the zeroth-order hypergradient refuses: programs, settings and losses."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems import lower_view
from support.measured_losses import (
    ONE,
    Lower,
    Upper,
    joined,
    lower_problem,
    numbers,
    upper_problem,
)
from support.small import Point

from metaweight import (
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    FiniteDifference,
    HypergradientError,
    ImplicitProblem,
    ZeroOrder,
)


def test_has_no_vector_jacobian_product() -> None:
    engine, _ = joined(upper_problem(), lower_problem())
    with pytest.raises(HypergradientError, match=r"ZeroOrder of problem 'lower'.*call estimate"):
        ONE.vjp(lower_view(engine.lower), [], [])


def test_a_loss_that_is_not_finite_is_refused() -> None:
    class Broken(Upper):
        def training_step(self, batch):
            return (self.lower.module.w.sum() * float("nan")).detach()

    with pytest.raises(HypergradientError, match=r"ZeroOrder through problem 'lower'.*smaller rad"):
        joined(upper_problem(Broken), lower_problem())


def three(middle_method, leaf_method):
    class Leaf(ImplicitProblem):
        def training_step(self, batch):
            return ((self.module.w - self.middle.module.w * self.top.module.w) ** 2).sum()

    class Middle(ImplicitProblem):
        def training_step(self, batch):
            return (self.module.w * self.leaf_.module.w * self.top.module.w).sum()

    class Top(ImplicitProblem):
        def training_step(self, batch):
            return (self.leaf_.module.w**2 + self.middle.module.w**2).sum()

    def make(kind, name, method):
        module = Point(0.5, 1.0)
        return kind(
            name,
            Config(type=method),
            module,
            torch.optim.SGD(module.parameters(), 0.1),
            train_data_loader=numbers(0.0),
        )

    top, middle = make(Top, "top", FiniteDifference()), make(Middle, "middle", middle_method)
    leaf = make(Leaf, "leaf_", leaf_method)
    return Engine(
        [top, middle, leaf],
        EngineConfig(strategy="cpu"),
        {"u2l": {top: [leaf], middle: [leaf]}, "l2u": {leaf: [middle], middle: [top]}},
    )


def test_longer_paths_are_refused_when_the_engine_is_built() -> None:
    with pytest.raises(ConfigurationError, match=r"'leaf_'.*path top -> middle -> leaf_ -> top"):
        three(FiniteDifference(), ZeroOrder())
    with pytest.raises(ConfigurationError, match=r"'middle' asks for ZeroOrder.*steps again"):
        three(ZeroOrder(), FiniteDifference())
    three(FiniteDifference(), FiniteDifference()).train_step()


def test_steps_that_cannot_be_taken_again_are_refused() -> None:
    class Own(Lower):
        def custom_optimizer_step(self):
            self.optimizer.step()

    with pytest.raises(ConfigurationError, match="'lower' asks for ZeroOrder but takes steps of"):
        joined(upper_problem(), lower_problem(Own))
    half = lower_problem()
    half._config = Config(type=ONE, hypergradient_parameters=("0",))
    with pytest.raises(ConfigurationError, match=r"leave hypergradient_parameters out"):
        ONE.check(lower_view(half))
    half._config = Config(type=ONE, precision="fp16")
    with pytest.raises(ConfigurationError, match=r"ZeroOrder with precision='fp16'.*use 'bf16'"):
        joined(upper_problem(), half)
