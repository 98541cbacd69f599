"""Drawn programs in double precision against loops written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from metaweight.engines import Hook
from torch import Tensor, nn
from torch.func import functional_call

from metaweight import Unroll
from support.drawn_checks import run, told
from support.drawn_problems import build, scheduler
from support.naive import relative_error
from support.random_programs import EDGES, SETTINGS, Dice, Level, Program, draw
from support.unrolled import NAIVE, naive_sgd

RULES = {kind.__name__: rule for kind, rule in NAIVE.items()}
EXACT: tuple[Any, ...] = (
    "unroll",
    "t1t2",
    Unroll(),
    Unroll(memory="full"),
    Unroll(product="forward_over_reverse"),
    Unroll(steps=1, memory="full"),
)


def plain(program: Program, level: Level) -> Level:
    """The same problem in double precision, drawing nothing from the global random streams."""
    kind = level.data.kind if level.data.kind in ("list", "tensors", "generator") else "tensors"
    config = {**level.config, "precision": "fp32"}
    for name in ("darts_multitask", "sama_multitask"):
        config.pop(name, None)
    if level.kind == "decisions":
        config["type"] = "darts"
    return replace(
        level,
        kind="plain" if level.kind == "decisions" else level.kind,
        network=replace(level.network, dropout=0.0),
        data=replace(level.data, kind=kind, jitter=False),
        scheduler="none" if level.scheduler == "plateau" else level.scheduler,
        config=config,
    )


def still(program: Program) -> Program:
    """The same with problems above the leaves that take steps of length 0, and SGD below them."""
    sgd = [settings for kind, settings in SETTINGS if kind == "SGD"]
    levels: list[Level] = []
    for level in program.levels:
        changed = plain(program, level)
        if program.below(level.name):
            changed = replace(changed, optimizer="SGD", settings={"lr": 0.0}, scheduler="none")
        elif level.optimizer != "SGD":
            changed = replace(changed, optimizer="SGD", settings=dict(Dice(0).choice(sgd)))
        levels.append(changed)
    engine = {**program.engine, "logger_type": "none", "non_finite": "ignore"}
    if any(moves_under_roll_back(level) for level in levels):
        engine["roll_back"] = False
    return program.change(levels=tuple(levels), dtype=torch.float64, hooks=(), engine=engine)


def moves_under_roll_back(level: Level) -> bool:
    """Whether a roll-back changes a problem also where those above it stay: it keeps the last step
    of a loop alone, for which the scheduler steps once."""
    scheduled = level.scheduler != "none" and level.config.get("gradient_accumulation", 1) != 1
    return level.config.get("unroll_steps", 1) != 1 or scheduled


def check_still_uppers(program: Program) -> bool:
    """Upper problems that do not move are where they were, and leaves train as if alone.

    Returns:
        Whether the program is a valid one.
    """
    program = still(program)
    with told(program):
        engine = run(program, 11).engine
        if engine is None:
            return False
        fresh = build(program)
        for problem, start in zip(engine.problems, fresh.problems, strict=True):
            if problem.children:
                expected = list(start.module.parameters())
            else:
                (level,) = (u for u in program.levels if u.name == problem.name)
                expected = trained_alone(program, level, start)
            for p, q in zip(problem.module.parameters(), expected, strict=True):
                # Rounding, which a dozen steps of a small network hardly grow.
                torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    return True


def trained_alone(program: Program, level: Level, problem: Any) -> list[Tensor]:
    """Train by SGD as its definition says."""
    parameters = [p for p in problem.module.parameters() if p.requires_grad]
    states: list[dict[str, Tensor]] = [{} for _ in parameters]
    accumulation = level.config["gradient_accumulation"]
    clipping = level.config["gradient_clipping"]
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], **level.settings)
    rates = scheduler(level.scheduler, dummy, program.steps)
    batches = endless(problem.source.loaders)
    gradient = [torch.zeros_like(p) for p in parameters]
    for number in range(1, program.steps + 1):
        loss = problem.loss_of(problem.training_step(next(batches)))
        found = torch.autograd.grad(loss, parameters)
        gradient = [g + f / accumulation for g, f in zip(gradient, found, strict=True)]
        if number % accumulation == 0:
            gradient = clipped(gradient, clipping)
            for i, p in enumerate(parameters):
                moved, states[i] = naive_sgd(
                    p.detach(), gradient[i], states[i], number, dict(dummy.param_groups[0])
                )
                p.data = moved
            gradient = [torch.zeros_like(p) for p in parameters]
        dummy.step()
        if rates is not None:
            rates.step()
    return list(problem.module.parameters())


def endless(loaders: Any) -> Iterator[Any]:
    (loader,) = loaders
    while True:
        yield from loader


def clipped(gradient: list[Tensor], limit: float) -> list[Tensor]:
    if not limit:
        return gradient
    norm = torch.sqrt(sum((g**2).sum() for g in gradient))
    return [g * torch.clamp(limit / (norm + 1e-6), max=1.0) for g in gradient]


def exact(seed: int) -> Program:
    """A drawn program with one upper problem, whose lower ones are unrolled exactly."""
    dice, program = Dice(seed), draw(seed)
    above = EDGES[dice.choice(["two", "two", "two lowers"])]
    donor = program.levels[0]
    rhythm = {
        "unroll_steps": dice.randint(1, 3),
        "gradient_accumulation": dice.choice([1, 1, 2]),
        "warmup_steps": dice.choice([0, 0, 3]),
    }
    weigher = dice.random() < 0.6
    lowers = [name for name in above if above[name]]
    levels = []
    for name in above:
        # The product of momenta that NAdam keeps is in single precision, its loops are not.
        optimizer, settings = dice.choice([s for s in SETTINGS if s[0] != "NAdam"])
        level = replace(
            plain(program, donor),
            name=name,
            above=above[name],
            enters=() if above[name] else tuple(lowers),
            optimizer=optimizer,
            settings=dict(settings),
        )
        network = replace(level.network, weigher=weigher and not above[name], frozen=False)
        if network.weigher:
            network = replace(network, norm="none")
        kind = "plain"
        config: dict[str, Any] = {"gradient_clipping": dice.choice([0.0, 0.0, 0.5])}
        if above[name]:
            kind = dice.choice(["plain", "iterative", "weighted"] if weigher else ["plain"])
            config |= {**rhythm, "type": dice.choice(EXACT)}
        else:
            config["gradient_accumulation"] = dice.choice([1, 1, 2])
        levels.append(replace(level, kind=kind, network=network, config=config))
    engine = {**program.engine, "logger_type": "none", "roll_back": False}
    return program.change(
        levels=tuple(levels),
        dtype=torch.float64,
        hooks=(),
        engine=engine,
        steps=max(program.steps, 3 * rhythm["unroll_steps"] * rhythm["gradient_accumulation"] + 3),
    )


def check_exact(seed: int) -> None:
    """Compare every hypergradient of a program with that of one graph of all its steps."""
    program = exact(seed)
    with told(program):
        naive = NaiveUnroll()
        outcome = run(program, 11, hooks=(naive,))
        assert outcome.engine is not None, outcome.refusal
        assert naive.compared, "no hypergradient was taken"


class Everything(nn.Module):
    """All modules of a program as one, called with the problem whose loss is wanted."""

    def __init__(self, problems: list[Any]) -> None:
        super().__init__()
        self.all = nn.ModuleDict({p.name: p.module for p in problems})

    def forward(self, problem: Any, batch: Any) -> Tensor:
        loss: Tensor = problem.loss_of(problem.training_step(batch))
        return loss


class NaiveUnroll(Hook):
    """Follows a run of two levels by optimizers written out, in one graph per loop."""

    only_shows = True

    def __init__(self) -> None:
        self.compared = 0
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._states: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._gradients: dict[str, dict[str, Tensor]] = {}
        self._rates: dict[str, dict[str, Any]] = {}
        self._total: list[Tensor] = []

    def run_start(self, engine: Any) -> None:
        self._modules = Everything(engine.problems)
        for lower in engine.leaves:
            parameters = lower.module.named_parameters()
            self._weights[lower.name] = {k: p.detach().clone() for k, p in parameters}
            self._states[lower.name] = {k: {} for k in self._weights[lower.name]}

    def before_step(self, engine: Any, problem: Any) -> None:
        if problem.parents:
            self._rates[problem.name] = dict(problem.optimizer.param_groups[0])

    def after_step(self, engine: Any, problem: Any, result: Any) -> None:
        if not problem.parents:
            return
        name, config = problem.name, problem.config
        accumulation = config.gradient_accumulation
        if (problem.count - 1) % accumulation == 0:
            self._cut(problem, (problem.count - 1) // accumulation)
            self._gradients[name] = {k: torch.zeros_like(w) for k, w in self._weights[name].items()}
        weights = self._weights[name]
        loss = self._loss(problem, problem.cur_batch)
        found = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True
        )
        for key, gradient in zip(weights, found, strict=True):
            self._gradients[name][key] = self._gradients[name][key] + gradient / accumulation
        if problem.count % accumulation == 0:
            self._update(problem, problem.count // accumulation)

    def _cut(self, problem: Any, updates: int) -> None:
        """Let the graph begin where the hypergradient does."""
        kind, loop = problem.hypergradient, problem.config.unroll_steps
        through = loop if kind.steps is None else min(kind.steps, loop)
        if updates % loop <= loop - through:
            name = problem.name
            self._weights[name] = {
                k: w.detach().requires_grad_() for k, w in self._weights[name].items()
            }
            self._states[name] = {
                k: {n: v.detach() for n, v in state.items()}
                for k, state in self._states[name].items()
            }

    def _update(self, problem: Any, number: int) -> None:
        name = problem.name
        rule = RULES[type(problem.optimizer).__name__]
        weights, gradients = self._weights[name], self._gradients[name]
        values = clipped(list(gradients.values()), problem.config.gradient_clipping)
        for key, gradient in zip(gradients, values, strict=True):
            stepped = rule(
                weights[key], gradient, self._states[name][key], number, self._rates[name]
            )
            weights[key], self._states[name][key] = stepped
        for key, parameter in problem.module.named_parameters():
            # A bias before a batch norm has a gradient of rounding alone, which Adam divides by
            # 1e-8.
            torch.testing.assert_close(weights[key], parameter, rtol=1e-7, atol=1e-8)

    def _loss(self, problem: Any, batch: Any) -> Tensor:
        tensors = {
            f"all.{name}.{key}": value
            for name, weights in self._weights.items()
            for key, value in weights.items()
        }
        tensors |= {name: b.clone() for name, b in self._modules.named_buffers()}
        loss: Tensor = functional_call(self._modules, tensors, (problem, batch))
        return loss

    def after_gradient(self, engine: Any, problem: Any) -> None:
        if problem.parents:
            return
        own = list(problem.module.parameters())
        accumulation = problem.config.gradient_accumulation
        if (problem.count - 1) % accumulation == 0:
            self._total = [torch.zeros_like(p) for p in own]
        loss = self._loss(problem, problem.cur_batch) / accumulation
        found = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
        self._total = [t if g is None else t + g for t, g in zip(self._total, found, strict=True)]
        actual = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        scale = max(float(torch.cat([t.reshape(-1) for t in self._total]).norm()), 1e-12)
        error = relative_error(actual, self._total) if scale > 1e-12 else 0.0
        assert error < 1e-7, f"hypergradient {problem.count} is off by {error:.2g}"
        self.compared += 1
