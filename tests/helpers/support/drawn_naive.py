"""Drawn programs in double precision against loops written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from metaweight.engines import Hook
from metaweight.problems.base.loss import loss_of
from torch import Tensor, nn
from torch.func import functional_call

from metaweight import Unroll
from support.drawn_checks import run, told
from support.drawn_problems import build, scheduler
from support.naive import relative_error
from support.random_programs import EDGES, SETTINGS, Dice, Level, Program, draw
from support.unrolled import NAIVE, naive_sgd

RULES = {kind.__name__: rule for kind, rule in NAIVE.items()}
# The product of momenta that NAdam keeps is in single precision, loops by hand are not.
RULED = [drawn for drawn in SETTINGS if drawn[0] != "NAdam"]
# A bias before a batch norm has a gradient of rounding alone, which others divide by its size.
ROUNDING_STAYS_SMALL = [drawn for drawn in SETTINGS if drawn[0] == "SGD"]
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
        loss = loss_of(problem.name, problem.training_step(next(batches)))
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
    warmup = dice.choice([0, 0, 3])
    rhythms = [
        {
            "unroll_steps": dice.randint(1, 3),
            "gradient_accumulation": dice.choice([1, 1, 2]),
            "warmup_steps": warmup,
        }
        for _ in above
    ]
    weigher = dice.random() < 0.6
    lowers = [name for name in above if above[name]]
    levels = []
    for name, rhythm in zip(above, rhythms, strict=True):
        optimizer, settings = dice.choice(
            ROUNDING_STAYS_SMALL if donor.network.norm == "batch" else RULED
        )
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
        steps=15,
    )


def check_exact(program: Program) -> None:
    """Compare every hypergradient of a program with that of one graph of the last steps."""
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
        loss: Tensor = loss_of(problem.name, problem.training_step(batch))
        return loss


@dataclass
class Update:
    """What an optimizer step started from, and what it saw."""

    weights: dict[str, Tensor]
    states: dict[str, dict[str, Tensor]]
    rates: dict[str, Any]
    number: int
    batches: list[Any] = field(default_factory=list)
    above: list[dict[str, Tensor]] = field(default_factory=list)


class NaiveUnroll(Hook):
    """Follows a run of two levels by optimizers written out, and takes the last steps of each lower
    problem again in one graph whenever the upper one differentiates."""

    only_shows = True

    def __init__(self) -> None:
        self.compared = 0
        self._updates: dict[str, list[Update]] = {}
        self._now: dict[str, dict[str, Tensor]] = {}
        self._states: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._total: list[Tensor] = []

    def run_start(self, engine: Any) -> None:
        self._modules = Everything(engine.problems)
        for lower in engine.leaves:
            parameters = lower.module.named_parameters()
            self._now[lower.name] = {k: p.detach().clone() for k, p in parameters}
            self._states[lower.name] = {k: {} for k in self._now[lower.name]}
            self._updates[lower.name] = []

    def before_step(self, engine: Any, problem: Any) -> None:
        accumulation = problem.config.gradient_accumulation
        if not problem.parents or (problem.count - 1) % accumulation:
            return
        number = (problem.count - 1) // accumulation + 1
        start = Update(self._now[problem.name], self._states[problem.name], {}, number)
        self._updates[problem.name].append(start)

    def after_gradient(self, engine: Any, problem: Any) -> None:
        if not problem.parents:
            self._compare(engine, problem)
            return
        update = self._updates[problem.name][-1]
        update.rates = dict(problem.optimizer.param_groups[0])
        update.batches.append(problem.cur_batch)
        (upper,) = problem.parents
        update.above.append(
            {f"{upper.name}.{k}": p.detach() + 0.0 for k, p in upper.module.named_parameters()}
        )

    def after_step(self, engine: Any, problem: Any, result: Any) -> None:
        if not problem.parents or problem.count % problem.config.gradient_accumulation:
            return
        name = problem.name
        update = self._updates[name][-1]
        weights = {k: w.requires_grad_() for k, w in update.weights.items()}
        weights, states = self._taken(problem, update, weights, update.states)
        self._now[name] = {k: w.detach() for k, w in weights.items()}
        self._states[name] = _detached(states)
        for key, parameter in problem.module.named_parameters():
            torch.testing.assert_close(self._now[name][key], parameter, rtol=1e-8, atol=1e-10)

    def _taken(
        self, problem: Any, update: Update, weights: dict[str, Tensor], states: Any
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Return where an optimizer step ends that starts from ``weights``."""
        total = [torch.zeros_like(w) for w in weights.values()]
        for batch, above in zip(update.batches, update.above, strict=True):
            own = {f"{problem.name}.{k}": w for k, w in weights.items()}
            loss = self._loss(problem, batch, {**own, **above})
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            total = [t + f / len(update.batches) for t, f in zip(total, found, strict=True)]
        total = clipped(total, problem.config.gradient_clipping)
        rule = RULES[type(problem.optimizer).__name__]
        stepped = {
            key: rule(weights[key], g, states[key], update.number, update.rates)
            for key, g in zip(weights, total, strict=True)
        }
        return {k: s[0] for k, s in stepped.items()}, {k: s[1] for k, s in stepped.items()}

    def _loss(self, problem: Any, batch: Any, tensors: dict[str, Tensor]) -> Tensor:
        placed = {f"all.{name}": value for name, value in tensors.items()}
        placed |= {name: b.clone() for name, b in self._modules.named_buffers()}
        loss: Tensor = functional_call(self._modules, placed, (problem, batch))
        return loss

    def _compare(self, engine: Any, problem: Any) -> None:
        own = dict(problem.module.named_parameters())
        if (problem.count - 1) % problem.config.gradient_accumulation == 0:
            self._total = [torch.zeros_like(p) for p in own.values()]
        tensors: dict[str, Tensor] = {}
        above: list[tuple[str, Tensor]] = [(k, p) for k, p in own.items()]
        for lower in problem.children:
            weights = self._unrolled(lower, above, f"{problem.name}.")
            tensors |= {f"{lower.name}.{k}": w for k, w in weights.items()}
        loss = self._loss(problem, problem.cur_batch, tensors)
        loss = loss / problem.config.gradient_accumulation
        found = torch.autograd.grad(loss, [t for _, t in above], allow_unused=True)
        for (key, _), gradient in zip(above, found, strict=True):
            if gradient is not None:
                place = list(own).index(key)
                self._total[place] = self._total[place] + gradient
        actual = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.values()]
        if float(torch.cat([t.reshape(-1) for t in self._total]).norm()) > 1e-12:
            error = relative_error(actual, self._total)
            # Rounding, which second moments near 0 magnify.
            assert error < 1e-6, f"hypergradient {problem.count} is off by {error:.2g}"
            self.compared += 1

    def _unrolled(
        self, lower: Any, above: list[tuple[str, Tensor]], prefix: str
    ) -> dict[str, Tensor]:
        """Take the last steps again; the upper parameters each of them saw join ``above``."""
        kind, loop = lower.hypergradient, lower.config.unroll_steps
        through = loop if kind.steps is None else min(kind.steps, loop)
        accumulation = lower.config.gradient_accumulation
        complete = [u for u in self._updates[lower.name] if len(u.batches) == accumulation]
        updates = complete[-through:]
        weights = {k: w.detach().requires_grad_() for k, w in updates[0].weights.items()}
        states: Any = _detached(updates[0].states)
        for update in updates:
            for seen in update.above:
                for name in seen:
                    seen[name] = seen[name].detach().requires_grad_()
                    above.append((name.removeprefix(prefix), seen[name]))
            weights, states = self._taken(lower, update, weights, states)
        return weights


def _detached(states: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {k: {n: v.detach() for n, v in state.items()} for k, state in states.items()}
