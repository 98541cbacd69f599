"""metaweight's methods as ordinary two-level programs.

A method's linear system has the step size of the lower problem. What moves in one loop, but SABA,
has step sizes that fall as ``1 / √t``, as published; the others' are constant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypergradient_tasks.programs import Point
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from metaweight import (
    MASOBA,
    SABA,
    SOBA,
    AmIGO,
    Config,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    Hypergradient,
    HypergradientError,
    ImplicitProblem,
    Neumann,
    Nystrom,
    Penalty,
    StocBiO,
    Unroll,
    VarianceReduction,
)

from .batches import Shuffled
from .counting import counted
from .problems import Problem
from .traces import Settings, Trace

STEPS = 10
"""Lower steps for one of the upper problem, and products or terms of a linear solve."""
DAMPING = 0.1


@dataclass(frozen=True)
class Method:
    """A method and its program.

    Attributes:
        hypergradient: Makes it, given the step size of the lower problem.
        steps: Lower steps for one of the upper problem.
        falling: Whether step sizes fall.
        corrected: Whether the gradients of both problems are corrected by a table of batches.
    """

    hypergradient: Callable[[float], Hypergradient]
    steps: int = STEPS
    falling: bool = False
    corrected: bool = False


METHODS: Mapping[str, Method] = {
    "SOBA": Method(lambda lr: SOBA(lr=lr), 1, falling=True),
    "SABA": Method(lambda lr: SABA(lr=lr), 1, corrected=True),
    "MASOBA": Method(lambda lr: MASOBA(lr=lr), 1, falling=True),
    "AmIGO": Method(lambda lr: AmIGO(lr=lr, iterations=STEPS)),
    "StocBiO": Method(lambda lr: StocBiO(alpha=lr, iterations=STEPS)),
    "Neumann, warm and fresh": Method(
        lambda lr: Neumann(alpha=lr, iterations=1, warm=True, batches="fresh"), 1, falling=True
    ),
    "Neumann": Method(lambda lr: Neumann(alpha=lr, iterations=STEPS)),
    "ConjugateGradient": Method(lambda lr: ConjugateGradient(iterations=STEPS, damping=DAMPING)),
    "Nystrom": Method(lambda lr: Nystrom(rank=STEPS, damping=DAMPING)),
    "Penalty": Method(lambda lr: Penalty(steps=STEPS)),
    "FiniteDifference": Method(lambda lr: FiniteDifference(), 1),
    "Unroll": Method(lambda lr: Unroll()),
}


class Lower(ImplicitProblem):
    """``cfg``: the problem."""

    def training_step(self, batch: Any) -> Tensor:
        return self.cfg.lower_loss(self.module(), self.upper.module(), batch)


class Upper(ImplicitProblem):
    """``cfg``: the problem."""

    def training_step(self, batch: Any) -> Tensor:
        return self.cfg.upper_loss(self.lower.module(), self.module(), batch)


class Observed(Engine):
    """An engine whose validations keep the time and ``θ``."""

    def watch(self) -> Trace:
        """Return what the validations from now on keep."""
        self._trace = Trace()
        return self._trace

    def validation(self) -> None:
        self._trace.note(time.process_time(), self.upper.module().detach().numpy())


def program(
    problem: Problem,
    method: Method,
    settings: Settings,
    iterations: int,
    every: int,
    **engine_settings: Any,
) -> Observed:
    """Return the program.

    Args:
        problem: The problem.
        method: The method.
        settings: Step sizes and seed.
        iterations: Steps of the upper problem.
        every: Steps of the upper problem from one validation to the next.
        **engine_settings: Further settings of the ``EngineConfig``.
    """
    logging.disable(logging.INFO)
    hypergradient = method.hypergradient(settings.lower_step)
    below = Config(type=hypergradient, unroll_steps=method.steps)
    configs = {"upper": Config(), "lower": below}
    starts = {"upper": problem.theta, "lower": problem.w}
    rates = {"upper": settings.upper_step, "lower": settings.lower_step}
    levels = {}
    for name, kind in (("upper", Upper), ("lower", Lower)):
        module = Point(starts[name])
        optimizer = torch.optim.SGD(module.parameters(), rates[name])
        levels[name] = kind(
            name,
            configs[name],
            module,
            optimizer,
            scheduler=LambdaLR(optimizer, lambda t: (t + 1) ** -0.5) if method.falling else None,
            train_data_loader=Shuffled(problem.batches(name), settings.seed, name),
            extra_config=problem,
        )
    upper, lower = levels["upper"], levels["lower"]
    return Observed(
        [upper, lower],
        EngineConfig(
            train_iters=iterations * method.steps,
            valid_step=every * method.steps,
            **{"strategy": "cpu", "progress": False, **engine_settings},
        ),
        {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
        hooks=[VarianceReduction()] if method.corrected else [],
    )


def calls(problem: Problem, name: str) -> float:
    """Return the oracle calls of one step of the upper problem, the first two left out."""
    counting, counter = counted(problem)
    settings = Settings(problem.lower_steps[0], problem.upper_steps[0], seed=0)
    seen = []
    for iterations in (2, 4):
        counter.calls = 0
        engine = program(counting, METHODS[name], settings, iterations, 2 * iterations)
        engine.run()
        seen.append(counter.calls)
    return (seen[1] - seen[0]) / 2


def trace(problem: Problem, name: str, settings: Settings, iterations: int, every: int) -> Trace:
    """Run a method and return its trace, up to an error of its own if it diverges."""
    torch.set_num_threads(1)
    engine = program(problem, METHODS[name], settings, iterations, every)
    found = engine.watch()
    found.begin(time.process_time())
    try:
        engine.run()
    except HypergradientError as error:
        found.failed = str(error).splitlines()[0]
    return found
