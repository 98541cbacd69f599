"""What must hold of every drawn program, whatever it is."""

from __future__ import annotations

import gc
import random
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metaweight.engines import Hook, Rhythm
from torch import Tensor

from metaweight import (
    Engine,
    Hypergradient,
    MetaweightError,
    Problem,
    Product,
    Status,
    Unroll,
    ValueHypergradient,
)
from support.drawn_problems import build
from support.random_programs import Program
from support.resuming import difference, everything, rows, seed_all
from support.schedule_simulation import Simulation


@dataclass
class Outcome:
    """An engine that ran to its end, or why it did not."""

    engine: Engine | None
    refusal: str = ""


def check(program: Program, folder: Path) -> bool:
    """Run a program in all ways that must agree.

    Returns:
        Whether it is a valid program; of others it is seen that they are refused in words, and
        alike each time.
    """
    with told(program):
        watch = Watch()
        at = random.Random(program.seed).randint(1, program.steps - 1)
        saved, logs = folder / "saved", folder / "logs"
        saving = {"checkpoint_dir": saved, "checkpoint_step": at, "keep_last": None}
        whole = run(program, 11, hooks=(watch,), log_dir=logs, **saving)
        again = run(program, 11, log_dir=folder / "again")
        assert whole.refusal == again.refusal
        if whole.engine is None or again.engine is None:
            return False
        found = difference(everything(whole.engine), everything(again.engine))
        assert not found, f"two runs of one seed: {found}"
        require_counts(program, whole.engine, watch)
        require_finite(program, whole.engine)
        require_frozen(program, whole.engine)
        if whole.engine.global_step > at:
            resume(program, whole.engine, saved / f"step-{at:010d}.ckpt", folder)
        require_no_leak(whole, again)
    return True


@contextmanager
def told(program: Program) -> Iterator[None]:
    """Print the program when something is raised."""
    try:
        yield
    except BaseException:
        print(f"draw({program.seed}) is\n{program}")
        raise


def run(program: Program, seed: int, *, resume: Path | None = None, **settings: Any) -> Outcome:
    """Build a program and run it."""
    seed_all(seed)
    try:
        engine = build(program, **settings)
        engine.run(resume=resume)
    except MetaweightError as error:
        assert len(str(error)) > 40, f"an error without a sentence: {error!r}"
        return Outcome(None, str(error))
    return Outcome(engine)


def resume(program: Program, whole: Engine, saved: Path, folder: Path) -> None:
    """Go on from a file with fresh objects, to the same end."""
    place = folder / "resumed"
    if (folder / "logs").exists():
        shutil.copytree(folder / "logs", place)
    resumed = run(program, 12, resume=saved, log_dir=place).engine
    assert resumed is not None
    if keeps_graphs(program):
        # No file can hold them; without them the same derivative comes in another order.
        require_close(program, whole, resumed)
        return
    found = difference(everything(whole), everything(resumed))
    assert not found, f"resumed from {saved.name}: {found}"
    assert rows(folder / "logs") == rows(place), f"logs, resumed from {saved.name}"


def keeps_graphs(program: Program) -> bool:
    types = [level.config["type"] for level in program.levels]
    return any(isinstance(t, Unroll) and t.memory == "full" for t in types)


def require_close(program: Program, a: Engine, b: Engine) -> None:
    """Compare parameters to rounding, which some steps of a double or single precision grow."""
    halves = any(level.config.get("precision", "fp32") != "fp32" for level in program.levels)
    if halves or program.dtype is torch.bfloat16:
        return
    tolerance = 1e-8 if program.dtype is torch.float64 else 2e-2
    for p, q in zip(a.problems, b.problems, strict=True):
        for x, y in zip(p.module.parameters(), q.module.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def require_counts(program: Program, engine: Engine, watch: Watch) -> None:
    """Compare steps, and optimizer steps, with those of a simulation by time stamps."""
    if any(kind == "interval" for kind, _ in program.hooks) or engine.run_state.stopped:
        return
    rhythms = {
        level.name: Rhythm(
            unroll_steps=level.config.get("unroll_steps", 1),
            accumulation=level.config["gradient_accumulation"],
            warmup=level.config.get("warmup_steps", 0),
            roll_back=engine.config.roll_back,
        )
        for level in program.levels
    }
    simulation = Simulation(rhythms, {level.name: list(level.above) for level in program.levels})
    updates = dict.fromkeys(rhythms, 0)
    for _ in range(program.steps):
        for leaf in [level.name for level in program.levels if not program.below(level.name)]:
            _, redone = simulation.advance(leaf)
            for name in redone:
                updates[name] += 1
    for name, rhythm in rhythms.items():
        assert getattr(engine, name).count == simulation.steps[name], f"steps of {name}"
        updates[name] += simulation.steps[name] // rhythm.accumulation
    if not watch.skipped and not any(p.scaler is not None for p in engine.problems):
        assert watch.updates == updates


def require_finite(program: Program, engine: Engine) -> None:
    for problem in engine.problems:
        for name, tensor in problem.module.state_dict().items():
            assert torch.isfinite(tensor).all(), f"{name} of {problem.name}"


def require_frozen(program: Program, engine: Engine) -> None:
    """Parameters that require no gradient are where they began, and the others are not."""
    fresh = build(program)
    for a, b in zip(engine.problems, fresh.problems, strict=True):
        for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True):
            assert p.requires_grad == q.requires_grad
            assert p.requires_grad or torch.equal(p, q), f"a frozen parameter of {a.name}"
        modes = [m.training for m in a.module.modules()]
        assert modes == [m.training for m in b.module.modules()]


def require_no_leak(*outcomes: Outcome) -> None:
    """Let go of engines; their modules and parameters go with them."""
    kept: list[weakref.ref[Any]] = []
    for outcome in outcomes:
        assert outcome.engine is not None
        for problem in outcome.engine.problems:
            kept += [weakref.ref(problem), weakref.ref(problem.module)]
            kept += [weakref.ref(p) for p in problem.module.parameters()]
            kept.append(weakref.ref(problem.optimizer))
        outcome.engine = None
    del problem
    gc.collect()
    alive = [type(ref()).__name__ for ref in kept if ref() is not None]
    assert not alive, f"still there: {alive}"


class Watch(Hook):
    """Sees that a step of one problem leaves all others as they are, and counts updates."""

    only_shows = True

    def __init__(self) -> None:
        self.updates: dict[str, int] = {}
        self.skipped = 0
        self._before: dict[str, Any] = {}
        self._displaced: dict[str, list[str]] = {}

    def run_start(self, engine: Engine) -> None:
        for problem in engine.problems:
            self.updates[problem.name] = 0
            if problem.optimizer is not None:
                problem.optimizer.register_step_post_hook(self._counter(problem.name))
            multitask = [
                low.name
                for low in problem.position.lowers
                if low.config.darts_multitask or low.config.sama_multitask
            ]
            self._displaced[problem.name] = multitask

    def _counter(self, name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            self.updates[name] += 1

        return count

    def before_step(self, engine: Engine, problem: Any) -> None:
        self._before[problem.name] = self._state(engine, problem)
        self._own = [p.detach().clone() for p in problem.module.parameters()]

    def after_gradient(self, engine: Engine, problem: Any) -> None:
        self._compare(engine, problem, "gradient")
        for a, b in zip(self._own, problem.module.parameters(), strict=True):
            assert torch.equal(a, b), f"the gradient of {problem.name} moves its parameters"

    def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
        self._compare(engine, problem, "step")

    def step_skipped(self, engine: Engine, problem: Any) -> None:
        self.skipped += 1

    def _state(self, engine: Engine, problem: Any) -> dict[str, Any]:
        return {
            other.name: state_of(other, parameters=other.name not in self._displaced[problem.name])
            for other in engine.problems
            if other is not problem
        }

    def _compare(self, engine: Engine, problem: Any, what: str) -> None:
        found = difference(self._before[problem.name], self._state(engine, problem))
        assert not found, f"a {what} of {problem.name} changes {found}"


def state_of(problem: Any, *, parameters: bool) -> dict[str, Any]:
    """Copies of all that another problem's step must leave alone."""
    module = problem.module
    return {
        "parameters": [copied(p) for p in module.parameters()] if parameters else [],
        "buffers": [copied(b) for b in module.buffers()],
        "gradients": [copied(p.grad) for p in module.parameters()],
        "requires": [p.requires_grad for p in module.parameters()],
        "training": [m.training for m in module.modules()],
    }


def copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


class Nothing(Hypergradient):
    """A hypergradient of zeros, which evaluates nothing."""

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        return Product([torch.zeros_like(t) for t in upper_parameters], Status("Nothing"))


class NothingMeasured(ValueHypergradient):
    """The same for decisions, through which no gradient could flow."""

    def estimate(
        self, problem: Problem, value: Callable[[], Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        return Product([torch.zeros_like(t) for t in upper_parameters], Status("NothingMeasured"))


def check_streams(program: Program) -> None:
    """Hypergradients and roll-backs leave the random streams where they would be without."""
    with told(program):
        program = program.change(
            hooks=tuple(h for h in program.hooks if h[0] != "interval"),
            engine={**program.engine, "non_finite": "ignore", "logger_type": "none"},
        )
        levels = [
            replace(
                level,
                kind="plain" if level.kind == "iterative" else level.kind,
                config={
                    **level.config,
                    "type": NothingMeasured() if level.kind == "decisions" else Nothing(),
                },
            )
            for level in program.levels
        ]
        without = program.change(
            levels=tuple(levels), engine={**program.engine, "roll_back": False}
        )
        streams = []
        for other in (program, without):
            if run(other, 11).engine is None:
                return
            streams.append((torch.get_rng_state(), random.random(), float(np.random.rand())))
        assert torch.equal(streams[0][0], streams[1][0]), "torch's random stream"
        assert streams[0][1:] == streams[1][1:], "Python's or NumPy's random stream"
