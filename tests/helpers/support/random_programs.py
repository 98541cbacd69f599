"""Programs drawn from a seed, as plain data that tells all about them.

``draw(seed)`` returns a :class:`Program`; its text is enough to see what it is, its seed to have it
again, and ``drawn_problems.build`` makes an engine of it. Some are no valid programs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from metaweight import (
    SAMA,
    ConjugateGradient,
    FiniteDifference,
    LastLayers,
    Neumann,
    Nystrom,
    Penalty,
    Reinforce,
    Reweighting,
    SampledLayers,
    Unroll,
    ZeroOrder,
)

Dice = random.Random


@dataclass(frozen=True)
class Network:
    """What a problem trains: a classifier, or a network of one weight per loss."""

    weigher: bool = False
    norm: str = "none"
    dropout: float = 0.0
    frozen: bool = False


@dataclass(frozen=True)
class Data:
    """What a problem trains on; ``jitter`` draws from the global random streams."""

    kind: str = "list"
    number: int = 12
    batch: int = 4
    jitter: bool = False


@dataclass(frozen=True)
class Level:
    """One problem. ``above``: who steps after it; ``enters``: whose loss it enters."""

    name: str
    kind: str = "plain"
    above: tuple[str, ...] = ()
    enters: tuple[str, ...] = ()
    network: Network = Network()
    data: Data = Data()
    optimizer: str = "SGD"
    settings: dict[str, Any] = field(default_factory=dict)
    scheduler: str = "none"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A whole program."""

    seed: int
    levels: tuple[Level, ...]
    steps: int
    dtype: torch.dtype = torch.float64
    images: bool = False
    validates: bool = False
    engine: dict[str, Any] = field(default_factory=dict)
    hooks: tuple[tuple[str, dict[str, Any]], ...] = ()

    def __str__(self) -> str:
        lines = [_changed(self, "levels"), *[f"  {_changed(level)}" for level in self.levels]]
        return "\n".join(lines)

    def below(self, name: str) -> list[Level]:
        """Whom a problem waits for."""
        return [level for level in self.levels if name in level.above]

    def entering(self, name: str) -> list[Level]:
        """Whose parameters enter the loss of a problem from above."""
        return [level for level in self.levels if name in level.enters]

    def change(self, **changes: Any) -> Program:
        """The same but for some fields."""
        return replace(self, **changes)


def _changed(thing: Any, *without: str) -> str:
    """Name and values of the fields that are not as by default."""
    default = {f.name: f.default for f in fields(thing)}
    parts = [
        f"{name}={value!r}"
        for name, value in vars(thing).items()
        if name not in without and value != default[name] and value not in ({}, ())
    ]
    return f"{type(thing).__name__}({', '.join(parts)})"


GENERAL: tuple[Any, ...] = (
    "darts",
    "sama",
    "cg",
    "neumann",
    "unroll",
    "t1t2",
    "nystrom",
    "penalty",
    FiniteDifference(alpha=1e-3, full_precision=False),
    SAMA(preconditioner="exact"),
    ConjugateGradient(iterations=3, damping=1.0),
    ConjugateGradient(iterations=9, damping=2.0, tolerance=1e-3),
    Neumann(iterations=3, alpha=0.1),
    Nystrom(rank=3, damping=0.5),
    Penalty(steps=2, momentum=0.5),
    Penalty(steps=2, lr=0.05, form="bome"),
)
UNROLLED: tuple[Any, ...] = (
    "darts",
    "unroll",
    "t1t2",
    Unroll(),
    Unroll(memory="full"),
    Unroll(product="forward_over_reverse"),
    Unroll(product="finite_difference"),
    Unroll(product="one_sided"),
    Unroll(steps=1, product="one_sided"),
    Unroll(steps=1, memory="full"),
    Unroll(steps=2),
)
WEIGHTED: tuple[Any, ...] = (
    "darts",
    "reweighting",
    Reweighting(derivative="forward_mode"),
    Reweighting(derivative="one_sided"),
    Reweighting(full_precision=False),
)
VALUES: tuple[Any, ...] = (ZeroOrder(samples=2), "zero_order")
SCORES: tuple[Any, ...] = (
    "reinforce",
    Reinforce(samples=2),
    Reinforce(baseline="start", samples=1),
)
MULTITASK: tuple[dict[str, Any], ...] = (
    {"type": "darts", "darts_multitask": True},
    {"type": "sama", "sama_multitask": True},
)
# What is refused, in words, at construction or at the first step that needs it.
SPOILT: tuple[dict[str, Any], ...] = (
    {"type": "reinforce"},
    {"type": "reweighting"},
    {"type": Unroll(steps=9)},
    {"type": "newton"},
    {"hypergradient_parameters": ("nowhere",)},
    {"hypergradient_parameters": LastLayers(9)},
    {"unroll_steps": 0},
    {"gradient_accumulation": 1.5},
    {"gradient_clipping": -1.0},
    {"precision": "fp8"},
    {"warmup_steps": -1},
    {"first_order": False},
)
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3}),
    ("SGD", {"lr": 0.05, "momentum": 0.5, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "weight_decay": 1e-2}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 1e-2, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.003}),
    ("RMSprop", {"lr": 0.003, "momentum": 0.5, "centered": True}),
    ("Adagrad", {"lr": 0.02, "lr_decay": 0.1}),
    ("NAdam", {"lr": 0.003}),
)
SCHEDULERS = ("none", "none", "none", "step", "cosine", "one cycle", "plateau", "chained")
EDGES: dict[str, dict[str, tuple[str, ...]]] = {
    "one": {"a": ()},
    "two": {"a": ("b",), "b": ()},
    "three": {"a": ("b",), "b": ("c",), "c": ()},
    "four": {"a": ("b",), "b": ("c",), "c": ("d",), "d": ()},
    "two lowers": {"a": ("c",), "b": ("c",), "c": ()},
    "two uppers": {"a": ("b", "c"), "b": (), "c": ()},
    "diamond": {"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": ()},
    "shortcut": {"a": ("b", "c"), "b": ("c",), "c": ()},
}
"""Who steps after whom, by the name of the graph."""

GRAPHS = ("one", *("two",) * 5, *("three",) * 2, "four", "two lowers", "two uppers")
RARE = ("diamond", "shortcut", "two lowers", "two uppers")


def draw(seed: int) -> Program:
    """Return the program of a seed."""
    dice = Dice(seed)
    above = EDGES[dice.choice(GRAPHS if dice.random() < 0.8 else RARE)]
    dtype = dice.choice([torch.float64] * 4 + [torch.float32] * 5 + [torch.bfloat16])
    images = dice.random() < 0.25
    levels: list[Level] = []
    enters = {name: _entered(dice, name, above) for name in above}
    for name in above:
        top = not above[name]
        network = _network(dice, top and bool(enters[name]) and dice.random() < 0.7)
        levels.append(Level(name, above=above[name], enters=enters[name], network=network))
    program = Program(seed, tuple(levels), dice.randint(5, 14), dtype, images)
    deep = len(above) > 2
    settled = tuple(_settle(dice, program, level, deep=deep) for level in levels)
    program = program.change(levels=settled, validates=dice.random() < 0.3)
    program = program.change(engine=_engine(dice), hooks=_hooks(dice, program))
    return _spoil(dice, program) if dice.random() < 0.1 else program


def _entered(dice: Dice, name: str, above: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Draw whose loss a problem enters: whom it waits for, or those below these."""
    reach: dict[str, None] = {}
    near = [low for low in above if name in above[low]]
    for low in near:
        reach |= dict.fromkeys([low, *[deep for deep in above if low in above[deep]]])
    if dice.random() < 0.75:
        return tuple(near)
    return tuple(low for low in reach if dice.random() < 0.7)


def _network(dice: Dice, weigher: bool) -> Network:
    return Network(
        weigher,
        "none" if weigher else dice.choice(["none", "none", "batch", "layer", "eval batch"]),
        dice.choice([0.0, 0.0, 0.3]),
        dice.random() < 0.15,
    )


def _settle(dice: Dice, program: Program, level: Level, *, deep: bool) -> Level:
    """Draw all that depends on where a problem stands."""
    entering = program.entering(level.name)
    weighers = [up for up in entering if up.network.weigher]
    kinds = ["plain", "plain"]
    if entering:
        kinds += ["iterative", "iterative"]
    if len(entering) == len(weighers) == 1:
        kinds += ["weighted"] * 3
    if weighers and dice.random() < 0.3:
        kinds += ["decisions"]
    kind = dice.choice(kinds)
    optimizer, settings = dice.choice(SETTINGS)
    number, batch = dice.randint(5, 20), dice.randint(2, 6)
    data = Data(
        dice.choice(["list", "tensors", "shuffled", "generator", "two loaders"]),
        number + (number % batch == 1),
        batch,
        dice.random() < 0.4,
    )
    return replace(
        level,
        kind=kind,
        data=data,
        optimizer=optimizer,
        settings=dict(settings),
        scheduler=dice.choice(SCHEDULERS),
        config=_config(dice, program, kind, bool(level.above), deep=deep),
    )


def _config(dice: Dice, program: Program, kind: str, lower: bool, *, deep: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": dice.choice(_types(dice, kind))}
    if kind == "plain" and dice.random() < 0.05:
        found = dict(dice.choice(MULTITASK))
    if lower:
        found["unroll_steps"] = dice.choice([1, 1, 2] if deep else [1, 1, 2, 3])
        found["warmup_steps"] = dice.choice([0, 0, 0, 1, 3])
    found["gradient_accumulation"] = dice.choice([1, 1, 1, 2])
    found["gradient_clipping"] = dice.choice([0.0, 0.0, 0.5])
    if program.dtype is torch.float32:
        found["precision"] = dice.choice(["fp32", "fp32", "fp32", "bf16", "fp16"])
    if kind != "decisions" and dice.random() < 0.15:
        chosen = [LastLayers(1), SampledLayers(1), ("head",)]
        found["hypergradient_parameters"] = dice.choice(chosen)
    found["log_step"] = dice.choice([-1, 1])
    return found


def _types(dice: Dice, kind: str) -> Sequence[Any]:
    if kind == "iterative":
        return UNROLLED
    if kind == "decisions":
        return SCORES
    if kind == "weighted" and dice.random() < 0.7:
        return WEIGHTED
    return VALUES if dice.random() < 0.08 else GENERAL + UNROLLED[3:]


def _engine(dice: Dice) -> dict[str, Any]:
    return {
        "roll_back": dice.random() < 0.3,
        "channels_last": dice.random() < 0.3,
        "non_finite": dice.choice(["ignore", "ignore", "raise", "skip", "stop"]),
        "valid_step": dice.randint(1, 4),
        "logger_type": dice.choice(["none", "none", "jsonl", "csv"]),
    }


def _hooks(dice: Dice, program: Program) -> tuple[tuple[str, dict[str, Any]], ...]:
    found: list[tuple[str, dict[str, Any]]] = []
    if dice.random() < 0.3:
        settings = {
            "beta": 0.9,
            "buffers": dice.choice(["copy", "ema", "own", "none"]),
            "validate_teacher": dice.random() < 0.5,
        }
        found.append(("ema", {"problem": dice.choice(program.levels).name, **settings}))
    if dice.random() < 0.3:
        found.append(("norms", {"every": dice.randint(1, 3)}))
    tops = [level.name for level in program.levels if not level.above]
    if len(program.levels) > 1 and len(tops) == 1 and dice.random() < 0.15:
        found.append(("interval", {"upper": tops[0], "most": 4, "patience": 1}))
    return tuple(found)


def _spoil(dice: Dice, program: Program) -> Program:
    """Give one problem a setting that does not go with it."""
    place = dice.randrange(len(program.levels))
    level = program.levels[place]
    spoilt = replace(level, config={**level.config, **dice.choice(SPOILT)})
    levels = [*program.levels[:place], spoilt, *program.levels[place + 1 :]]
    return program.change(levels=tuple(levels))
