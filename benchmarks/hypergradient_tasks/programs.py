"""A case as a two-level program, the same text on metaweight and on Betty.

A step of a program consists of the lower problem's steps and then one of the upper problem, whose
gradient is read in ``grad_callback``. The upper optimizer's learning rate is 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import metaweight

from .case import Case

Gradient = Callable[[], Tensor]


class Library(NamedTuple):
    """The names a program imports."""

    engine: Any
    engine_config: Any
    problem: Any
    config: Any


def on_metaweight() -> Library:
    """Return metaweight's names."""
    m = metaweight
    return Library(m.Engine, m.EngineConfig, m.ImplicitProblem, m.Config)


def on_betty() -> Library:
    """Return Betty's names."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    return Library(Engine, EngineConfig, ImplicitProblem, Config)


class Point(nn.Module):
    """A vector of parameters; calling it returns them."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values.detach().clone())

    def forward(self) -> Tensor:
        return self.w


class Lower(NamedTuple):
    """Start and optimizer steps of the lower problem before it is differentiated.

    Attributes:
        start: Its parameters before its steps.
        optimizer: Maker of its optimizer.
        steps: Number of its optimizer steps.
    """

    start: Tensor
    optimizer: Callable[[Any], torch.optim.Optimizer]
    steps: int = 1


def at_solution(case: Case) -> Lower:
    """Return a lower problem that is at its solution and stays there."""
    return Lower(case.solution, lambda parameters: torch.optim.SGD(parameters, lr=0.0))


def heavy_ball(case: Case, steps: int) -> Lower:
    """Return a lower problem that goes from 0 towards its solution by SGD with momentum."""
    settings = case.heavy_ball()
    start = torch.zeros_like(case.solution)
    return Lower(start, lambda parameters: torch.optim.SGD(parameters, **settings), steps)


def adam(case: Case, steps: int, lr: float) -> Lower:
    """Return a lower problem that goes from 0 towards its solution by Adam."""
    start = torch.zeros_like(case.solution)
    return Lower(start, lambda parameters: torch.optim.Adam(parameters, lr=lr), steps)


def program(
    library: Library, case: Case, lower: Lower, *, reweighted: bool = False, **settings: Any
) -> Gradient:
    """Return a function that takes the lower steps from their start and returns the upper gradient.

    Args:
        library: The library on which the program runs.
        case: The problem.
        lower: Start and optimizer steps of the lower problem.
        reweighted: Declare the sample losses and weights; the penalty on ``w`` is left out, which
            does not enter the mixed derivative.
        settings: Settings of the lower problem's ``Config``.
    """
    seen: list[Tensor] = []

    class Outer(library.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return case.upper_loss(self.inner(), batch)

        def grad_callback(self) -> None:
            seen[:] = [p.grad.detach().clone() for p in self.module.parameters()]

    class Inner(library.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return case.lower_loss(self.module(), self.outer(), batch)

    inner = reweighted_problem(case) if reweighted else Inner
    engine = _engine(library, case, (Outer, inner), lower, settings)
    module, optimizer = engine.inner.module, engine.inner.optimizer

    def gradient() -> Tensor:
        module.w.data.copy_(lower.start)
        optimizer.state = defaultdict(dict)
        for _ in range(lower.steps):
            engine.train_step()
        return seen[0]

    return gradient


def reweighted_problem(case: Case) -> Any:
    """Return the class of a lower problem that declares its sample losses and weights."""

    class Inner(metaweight.ReweightedProblem):
        def sample_losses(self, batch: Any) -> Tensor:
            assert case.sample_losses is not None
            return case.sample_losses(self.module(), batch)

        def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
            del losses, batch
            assert case.sample_weights is not None
            return case.sample_weights(self.outer())

    return Inner


def _engine(
    library: Library, case: Case, classes: tuple[Any, Any], lower: Lower, settings: dict[str, Any]
) -> Any:
    upper_module, lower_module = Point(case.theta), Point(lower.start)
    outer = classes[0](
        name="outer",
        config=library.config(retain_graph=True),
        module=upper_module,
        optimizer=torch.optim.SGD(upper_module.parameters(), lr=0.0),
        train_data_loader=[case.judge],
    )
    inner = classes[1](
        name="inner",
        config=library.config(unroll_steps=lower.steps, **settings),
        module=lower_module,
        optimizer=lower.optimizer(lower_module.parameters()),
        train_data_loader=[case.train],
    )
    engine = library.engine(
        problems=[outer, inner],
        config=library.engine_config(train_iters=1, strategy="cpu"),
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )
    engine.train()
    return engine
