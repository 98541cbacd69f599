"""BOAT's unrolled steps on the same problems (Liu et al., boat-torch 1.1).

Its "NGD" takes the lower steps by higher, its "RAD" differentiates through them: the program of
``Unroll()``. It has one set of lower data for all steps of a call; here that is the stream of
batches, of which its loss takes the next in each lower step.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypergradient_tasks.programs import Point
from torch import Tensor

from .batches import Shuffled
from .counting import counted
from .problems import Batch, Problem
from .traces import Settings, Trace

STEPS = 10


class Data:
    """What BOAT's losses read: the streams of batches.

    Args:
        problem: The problem.
        seed: Seed of the batches' order.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self._streams = {
            level: _endless(Shuffled(problem.batches(level), seed, level))
            for level in ("lower", "upper")
        }
        self._lower: Batch = ()
        self._left = 0
        self.upper: Batch = ()

    def begin(self) -> None:
        """Begin a step of ``θ``."""
        self._left, self.upper = STEPS, next(self._streams["upper"])

    def lower(self) -> Batch:
        """Return the next batch; after the lower steps, the last again, which BOAT's log reads."""
        if self._left > 0:
            self._left, self._lower = self._left - 1, next(self._streams["lower"])
        return self._lower


def lower_loss(data: Data, above: Any, below: Any, params: Any = None) -> Tensor:
    """``G`` as BOAT calls it."""
    return data.problem.lower_loss(_vector(below, params), above(), data.lower())


def upper_loss(data: Data, above: Any, below: Any, params: Any = None) -> Tensor:
    """``F`` as BOAT calls it."""
    return data.problem.upper_loss(_vector(below, params), above(), data.upper)


def _vector(model: Any, params: Any) -> Tensor:
    found: Tensor = model() if params is None else model(params=params)
    return found


def _endless(loader: Shuffled) -> Iterator[Batch]:
    while True:
        yield from loader


def program(problem: Problem, settings: Settings) -> tuple[Any, Point]:
    """Return BOAT's problem and the module of ``θ``."""
    boat = importlib.import_module("boat_torch")
    below, above = Point(problem.w), Point(problem.theta)
    config = {
        "fo_op": None,
        "gm_op": ["NGD"],
        "na_op": ["RAD"],
        "lower_level_model": below,
        "upper_level_model": above,
        "lower_level_var": list(below.parameters()),
        "upper_level_var": list(above.parameters()),
        "lower_level_opt": torch.optim.SGD(below.parameters(), settings.lower_step),
        "upper_level_opt": torch.optim.SGD(above.parameters(), settings.upper_step),
        "lower_iters": STEPS,
        "device": "cpu",
        "loss_log_path": os.devnull,
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.0},
        "RGT": {"truncate_iter": 0},
        "accumulate_grad": False,
        "return_grad": False,
        "copy_last_param": True,
    }
    losses = {
        f"{level}_level_loss": {"function": f"{__name__}.{level}_loss"}
        for level in ("lower", "upper")
    }
    return boat.Problem(config, losses).build_ll_solver().build_ul_solver(), above


def calls(problem: Problem, name: str) -> float:
    """Return the oracle calls of a step of ``θ``, of which BOAT's log makes none."""
    counting, counter = counted(problem)
    settings = Settings(problem.lower_steps[0], problem.upper_steps[0], seed=0)
    trace(counting, name, settings, 1, 1)
    # The gradients of its lower steps have a graph, but are used, too.
    return counter.calls + STEPS


def trace(problem: Problem, name: str, settings: Settings, iterations: int, every: int) -> Trace:
    """Run the program and return its trace."""
    del name
    torch.set_num_threads(1)
    solver, above = program(problem, settings)
    data, found = Data(problem, settings.seed), Trace()
    found.begin(time.process_time())
    for number in range(iterations):
        data.begin()
        solver.run_iter(data, data, number)
        if (number + 1) % every == 0:
            found.note(time.process_time(), above().detach().numpy())
    return found


def loop(problem: Problem, settings: Settings, iterations: int) -> Callable[[], None]:
    """Return a run of so many steps of ``θ``, each time from where the last one ended."""
    solver, _ = program(problem, settings)
    data = Data(problem, settings.seed)

    def run() -> None:
        for number in range(iterations):
            data.begin()
            solver.run_iter(data, data, number)

    return run
