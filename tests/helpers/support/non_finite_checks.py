"""What each of two processes does where one of them meets numbers that are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from metaweight.problems import MetaweightError, NonFiniteError
from torch import Tensor, nn

from metaweight import Config, Engine, ImplicitProblem, NonFinite

from .checks import check
from .shared_out import TYPES, Judge, batch_norm, batches, parameters, program, run_config

NUMBER, SAMPLE = 2, 3
"""Which batch is spoilt, and which sample of the whole of it: one of the second process's."""

SKIPPED: dict[str, dict[str, Any]] = {
    "darts": {"kind": "darts"},
    "reweighting": {"kind": "reweighting", "accumulation": 2},
    "batch norm": {"kind": "reweighting", "norm": batch_norm, "sync_batch_norm": True},
    "cg": {"kind": "cg", "accumulation": 2},
    "unroll": {"kind": "unroll one-sided", "accumulation": 2},
    "rolled back": {"kind": "darts", "accumulation": 2, "roll_back": True},
}
UPPER_SKIPPED = ("darts", "reweighting", "unroll")
SKIPPED_CASES = [
    *((case, "low") for case in SKIPPED),
    *((case, "top") for case in UPPER_SKIPPED),
]


def spoil(engine: Engine, name: str, rank: int, world: int) -> None:
    """Put a number that is not finite into one sample of one batch of a problem."""
    inputs = getattr(engine, name).train_data_loader[0][NUMBER][0]
    if SAMPLE % world == rank:
        inputs[SAMPLE // world, 1] = math.nan


def spoilt(name: str, rank: int, world: int, **settings: Any) -> Engine:
    if world == 1:
        settings.pop("sync_batch_norm", None)
    # Enough for the upper problem to meet its third batch.
    iterations = {"train_iters": 8 * settings.get("accumulation", 1)}
    engine = program(rank=rank, world=world, **(iterations | settings))
    spoil(engine, name, rank, world)
    return engine


@check
def skipped(rank: int, world: int, folder: Path) -> Any:
    found = {}
    for case, name in SKIPPED_CASES:
        hook = NonFinite("skip")
        engine = spoilt(name, rank, world, hooks=[hook], **SKIPPED[case])
        engine.run()
        counts = {k: torch.tensor(n) for k, n in hook.skipped.items()}
        found[f"{case}, {name}"] = {**parameters(engine), "skipped": counts}
    return found


def outcome(engine: Engine) -> tuple[str, dict[str, Tensor]]:
    """The error a run ends with, and the parameters it leaves."""
    try:
        engine.run()
    except MetaweightError as error:
        return f"{type(error).__name__}: {error}", parameters(engine)
    return "none", parameters(engine)


RAISED: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("low", {"kind": "darts"}),
    "first of an accumulation": ("low", {"kind": "darts", "accumulation": 2}),
    "zero": ("low", {"kind": "unroll", "accumulation": 2}),
    "upper": ("top", {"kind": "reweighting"}),
}


@check
def raised(rank: int, world: int, folder: Path) -> Any:
    found = {}
    for case, (name, settings) in RAISED.items():
        strategy = "zero" if case == "zero" and world > 1 else run_config(world).strategy
        engine = spoilt(name, rank, world, non_finite="raise", strategy=strategy, **settings)
        found[case] = outcome(engine)
    return found


@check
def stopped(rank: int, world: int, folder: Path) -> Any:
    """Stopped inside an accumulation and saved; then resumed with another policy."""
    settings = {"kind": "darts", "accumulation": 2, "checkpoint_dir": folder / "saved"}
    engine = spoilt("low", rank, world, non_finite="stop", **settings)
    engine.run()
    at = engine.global_step
    again = spoilt("low", rank, world, non_finite="skip", **settings)
    again.run(resume="auto")
    return {"at": torch.tensor(at), **parameters(again)}


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.bias


class Root(ImplicitProblem):
    """A finite loss with an infinite derivative where a target is met."""

    def training_step(self, batch: Any) -> Any:
        return (self.module() - batch).abs().sqrt().mean()


def one(cls: type[Any], module: nn.Module, data: Any, world: int, **settings: Any) -> Engine:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    config = settings.pop("config", Config())
    hooks = settings.pop("hooks", ())
    fit = cls("fit", config, module, optimizer, train_data_loader=data)
    return Engine([fit], run_config(world, **settings), hooks=hooks)


@check
def gradient_at_fault(rank: int, world: int, folder: Path) -> Any:
    targets = torch.tensor([1.0, 0.0] if world == 1 else [1.0 - rank], dtype=torch.float64)
    return outcome(one(Root, Bias(), [targets], world, non_finite="raise"))[0]


class Line(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        return (self.module().float() * batch).mean()


@check
def overflows(rank: int, world: int, folder: Path) -> Any:
    """One process overflows the loss scale, until it has shrunk; that is no fault."""
    data = torch.tensor([1.0, 1e30] if world == 1 else [1e30 if rank else 1.0])
    hook = NonFinite("raise")
    config = Config(precision="fp16", initial_dynamic_scale=2.0**40)
    engine = one(Line, Bias().float(), [data], world, config=config, hooks=[hook], train_iters=10)
    engine.run()
    assert not hook.skipped
    return {"scale": torch.tensor(engine.fit.scaler.get_scale()), **parameters(engine)}


class Edge(ImplicitProblem):
    """Sample weights whose derivative is infinite for inputs of 0, where they are 0 themselves."""

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        weights = self.top(x[:, :1]).abs().sqrt().squeeze(1)
        return (weights * (self.module(x).squeeze(1) - y) ** 2).mean() + 0.1 * sum(
            p.square().sum() for p in self.module.parameters()
        )


@check
def solve_at_fault(rank: int, world: int, folder: Path) -> Any:
    """Only the last product of a solve is not finite, and only in one process."""
    found = {}
    for policy in ("raise", "skip"):
        torch.default_generator.manual_seed(3)
        low, top = nn.Linear(3, 1).double(), nn.Linear(1, 1, bias=False).double()
        data = batches(3, 4, rank, world)
        if SAMPLE % world == rank:
            data[NUMBER][0][SAMPLE // world, 0] = 0.0
        lower = Edge(
            "low",
            Config(type=TYPES["cg"]),
            low,
            torch.optim.SGD(low.parameters(), 0.05),
            train_data_loader=data,
        )
        optimizer = torch.optim.SGD(top.parameters(), 0.05)
        upper = Judge("top", Config(), top, optimizer, train_data_loader=batches(4, 3, rank, world))
        edges = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
        config = run_config(world, train_iters=7, non_finite=policy)
        found[policy] = outcome(Engine([upper, lower], config, edges))
    return found


@check
def agreements(rank: int, world: int, folder: Path) -> Any:
    """How many more messages go round in four lower and two upper steps."""
    return [_messages(program("darts", rank, world, non_finite=p)) for p in ("ignore", "skip")]


def _messages(engine: Engine) -> int:
    sent, original = 0, dist.all_reduce

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += 1
        return original(*args, **kwargs)

    dist.all_reduce = counting
    try:
        for _ in range(4):
            engine.global_step += 1
            engine.train_step()
    finally:
        dist.all_reduce = original
    return sent


@check
def too_many(rank: int, world: int, folder: Path) -> Any:
    hook = NonFinite("skip", in_a_row=2)
    engine = spoilt("top", rank, world, kind="darts", hooks=[hook], train_iters=40)
    engine.top.train_data_loader[0][:] = [engine.top.train_data_loader[0][NUMBER]]
    try:
        engine.run()
    except NonFiniteError as error:
        return str(error), error.problem, error.step
