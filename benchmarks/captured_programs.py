"""The programs whose small steps are taken by Python, by a graph, and by others."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import bilevel_tasks.ours
import speed_three_level
import torch
from bilevel_tasks import boat
from bilevel_tasks.ours import METHODS, Method
from bilevel_tasks.problems import PROBLEMS
from bilevel_tasks.traces import Settings
from hypergradient_tasks.programs import on_betty, on_metaweight
from speed_bilevel import our_engine, written_for_betty
from speed_contenders import on_torchopt
from speed_mlp import mlp_task
from speed_three_level import Levels
from speed_toy import Weights, data
from speed_toy import hand_written as hand_written_toy
from speed_toy import on_betty as toy_on_betty
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from turns import Step

from metaweight import SOBA, Config, Engine, ImplicitProblem, Unroll

PYTHON, REPLAYED, COMPILED, TOGETHER = "Python", "replayed", "compiled", "compiled, 8 iterations"
HAND, BETTY, TORCHOPT, JAX, BOAT = "hand-written", "betty-ml", "torchopt", "jax", "boat-torch"
JAX_CALLS = "jax, calls"
CAPTURES: Mapping[str, Mapping[str, Any]] = {
    PYTHON: {},
    REPLAYED: {"capture": "replay"},
    COMPILED: {"capture": "compile"},
    TOGETHER: {"capture": "compile", "capture_iterations": 8},
}
PACKAGES = {BETTY: "betty", TORCHOPT: "torchopt", JAX: "jax", JAX_CALLS: "jax", BOAT: "boat_torch"}
NATIVE, FULL, FLAT = Config(), Config(type=Unroll(memory="full")), Config(type=Unroll())
Run = Callable[[int], Step]
"""Returns a run of so many iterations."""


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        ours: Makes its engine, given settings of the ``EngineConfig``.
        others: Makes runs of the same by others, by name.
        captures: In which ways our steps are taken.
        iterations: Those of a turn, which begins with a comparison of one period.
    """

    ours: Callable[..., Engine]
    others: Mapping[str, Run] = field(default_factory=dict)
    captures: tuple[str, ...] = (PYTHON, REPLAYED, COMPILED)
    iterations: int = 2000


class Inner(ImplicitProblem):
    """Logistic regression with a penalty for each weight."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        w = self.module.w
        loss = binary_cross_entropy_with_logits(self.module(inputs), labels)
        return loss + 0.5 * (w * self.outer() * w).sum()


class Outer(ImplicitProblem):
    """Its loss on a validation batch."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return binary_cross_entropy_with_logits(self.inner(inputs), labels)


def toy(method: Any, steps: int, **settings: Any) -> Engine:
    """Return the toy's engine."""
    train, valid = data()
    child, parent = Weights(torch.zeros(20)), Weights(torch.ones(20))
    inner = Inner(
        "inner",
        Config(type=method, unroll_steps=steps),
        module=child,
        optimizer=torch.optim.SGD(child.parameters(), lr=0.1),
        train_data_loader=train,
    )
    outer = Outer(
        "outer",
        module=parent,
        optimizer=torch.optim.SGD(parent.parameters(), lr=1e-4, momentum=0.9),
        train_data_loader=valid,
    )
    return Engine.bilevel(outer, inner, strategy="cpu", **settings)


def of_suite(name: str, method: Method, **settings: Any) -> Engine:
    """Return the engine of a method on a problem of ``bilevel_suite.py``."""
    updates = settings.pop("train_iters") // method.steps
    return bilevel_tasks.ours.program(
        PROBLEMS[name](), method, _step_sizes(name), updates, updates + 1, **settings
    )


def in_jax(name: str, algorithm: str, whole: bool, iterations: int) -> Step:
    """Return a run on a problem of the suite, jitted as one loop, or iteration by iteration."""
    from bilevel_tasks import jax_programs

    program = jax_programs.Program(PROBLEMS[name](), algorithm)
    return (program.loop if whole else program.calls)(_step_sizes(name), iterations)


def on_boat(name: str, iterations: int) -> Step:
    """Return a run on a problem of the suite by BOAT, ten steps unrolled."""
    return boat.loop(PROBLEMS[name](), _step_sizes(name), iterations // boat.STEPS)


def _step_sizes(name: str) -> Settings:
    problem = PROBLEMS[name]()
    return Settings(problem.lower_steps[0], problem.upper_steps[0], seed=0)


def mlp(config: Config, steps: int, **settings: Any) -> Engine:
    """Return the engine of hyper-cleaning by an MLP."""
    found: Engine = our_engine(mlp_task(steps=steps), config, **settings)
    return found


def three_levels(**settings: Any) -> Engine:
    """Return the engine of three levels."""
    found: Engine = speed_three_level.engine_on(Levels(), on_metaweight, **settings)
    return found


def repeated(make: Callable[[], Callable[[], Any]], iterations: int, each: int = 1) -> Step:
    """Return a run of a program that is stepped ``each`` iterations at a time."""
    step = make()

    def run() -> None:
        for _ in range(iterations // each):
            step()

    return run


def _others(each: int = 1, **makers: Callable[[], Step]) -> dict[str, Run]:
    names = {"hand": HAND, "betty": BETTY, "torchopt": TORCHOPT}
    return {names[name]: partial(repeated, make, each=each) for name, make in makers.items()}


def _on_mlp(make: Callable[[Any], Step], steps: int = 1) -> Callable[[], Step]:
    return lambda: make(mlp_task(steps=steps))


_betty = partial(written_for_betty, library=on_betty)
_torchopt = partial(on_torchopt, again=False)
MLP: Mapping[str, Any] = {"captures": (PYTHON, REPLAYED, COMPILED), "iterations": 240}
TEN: Mapping[str, Any] = {**MLP, "iterations": 2000}
PROGRAMS: Mapping[str, Program] = {
    "toy, finite differences": Program(
        partial(toy, "darts", 1),
        _others(hand=partial(hand_written_toy, 1), betty=partial(toy_on_betty, 1)),
        (*CAPTURES,),
    ),
    "toy, SOBA": Program(partial(toy, SOBA(lr=0.1), 1), {}, (*CAPTURES,)),
    "toy, ten steps unrolled": Program(partial(toy, Unroll(), 10)),
    "quadratic, SOBA": Program(
        partial(of_suite, "quadratic", METHODS["SOBA"]),
        {
            JAX: partial(in_jax, "quadratic", "SOBA", True),
            JAX_CALLS: partial(in_jax, "quadratic", "SOBA", False),
        },
        (*CAPTURES,),
    ),
    "hyper-cleaning, ten steps unrolled": Program(
        partial(of_suite, "cleaning", Method(lambda lr: Unroll(memory="full"))),
        {BOAT: partial(on_boat, "cleaning")},
    ),
    "three levels": Program(
        three_levels,
        _others(
            hand=lambda: speed_three_level.hand_written(Levels()),
            betty=lambda: speed_three_level.on(Levels(), on_betty),
        ),
        **MLP,
    ),
    "MLP": Program(partial(mlp, NATIVE, 1), _others(betty=_on_mlp(_betty)), **MLP),
    "MLP, exact": Program(partial(mlp, FULL, 1), _others(torchopt=_on_mlp(_torchopt)), **MLP),
    "MLP, exact, flat memory": Program(
        partial(mlp, FLAT, 1), _others(torchopt=_on_mlp(_torchopt)), **MLP
    ),
    "MLP, ten steps": Program(
        partial(mlp, NATIVE, 10), _others(10, betty=_on_mlp(_betty, 10)), **TEN
    ),
    "MLP, ten steps, exact": Program(
        partial(mlp, FULL, 10), _others(10, torchopt=_on_mlp(_torchopt, 10)), **TEN
    ),
    "MLP, ten steps, exact, flat memory": Program(
        partial(mlp, FLAT, 10), _others(10, torchopt=_on_mlp(_torchopt, 10)), **TEN
    ),
}
"""The programs by title; MLP is the hyper-cleaning of ``speed.py``."""


def run_of(title: str, capture: str, iterations: int) -> Step:
    """Return a run of our program."""
    logging.disable(logging.INFO)
    engine = PROGRAMS[title].ours(train_iters=iterations, progress=False, **CAPTURES[capture])
    return engine.run


def run_of_other(title: str, name: str, iterations: int) -> Step:
    """Return a run of the program by another."""
    logging.disable(logging.INFO)
    return PROGRAMS[title].others[name](iterations)


def contenders(title: str, iterations: int) -> dict[str, Callable[[], Step]]:
    """Return the makers of runs, by name; peers that are missing are left out."""
    program = PROGRAMS[title]
    found: dict[str, Callable[[], Step]] = {
        name: partial(run_of, title, name, iterations) for name in program.captures
    }
    for name in program.others:
        if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]):
            found[name] = partial(run_of_other, title, name, iterations)
    return found
