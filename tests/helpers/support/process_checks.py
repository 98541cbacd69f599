"""What each of two processes does for the tests of several processes: the program as such."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from metaweight import AdaptiveInterval, Config, Engine, Hook, ImplicitProblem, Reinforce
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors, TensorLoader

from .checks import check
from .shared_out import (
    TYPES,
    Judge,
    Net,
    batch_norm,
    batches,
    chain,
    parameters,
    program,
    run_config,
)

SHARED_OUT = ("darts", "reweighting", "sama", "cg", "unroll", "unroll one-sided", "zero order")
# Every method that can accumulates and clips; a plain step is the same for the rest.
ONCE = ("darts", "reweighting", "unroll", "saba")
CASES = [(kind, 2, 0.3) for kind in TYPES if kind != "saba"] + [(kind, 1, 0.0) for kind in ONCE]


class Measured(Engine):
    """Validates to numbers that differ between processes."""

    def validation(self) -> dict[str, Any]:
        rank = float(self.processes.rank)
        return {"loss": 1.0 + rank, "table": torch.tensor([rank, 4.0]), "name": "text"}


class Remember(Hook):
    """Keeps what validations returned and what was in ``.grad``."""

    def __init__(self) -> None:
        self.stats: list[dict[str, Any]] = []
        self.gradients: list[Tensor] = []

    def after_gradient(self, engine: Engine, problem: Any) -> None:
        self.gradients.append(torch.cat([p.grad.reshape(-1) for p in problem.parameters()]))

    def after_validation(self, engine: Engine, stats: Any) -> None:
        self.stats.append(dict(stats))


def ran(engine: Engine) -> dict[str, Tensor]:
    engine.run()
    return parameters(engine)


def alone(
    rank: int,
    world: int,
    module: nn.Module,
    loader: Any,
    cls: type[Any] | None = None,
    hooks: Sequence[Hook] = (),
    **settings: Any,
) -> tuple[Engine, Any]:
    """One problem and its engine."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    problem = (cls or Fit)("fit", Config(), module, optimizer, train_data_loader=loader)
    return Engine([problem], run_config(world, **settings), hooks=hooks), problem


class Fit(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch[0], batch[1]
        return ((self.module(x).squeeze(1) - y) ** 2).mean()


def labelled(inputs: Tensor, labels: Tensor) -> LabelledTensors:
    numbers = torch.arange(len(labels))
    return LabelledTensors(inputs, labels, labels.clone(), numbers, len(labels))


@check
def methods(rank: int, world: int, folder: Path) -> Any:
    return {
        (kind, number): ran(program(kind, rank, world, accumulation=number, clipping=clipping))
        for kind, number, clipping in CASES
    }


@check
def states_shared_out(rank: int, world: int, folder: Path) -> Any:
    strategy = {"strategy": "zero"} if world > 1 else {}
    return {
        kind: ran(program(kind, rank, world, accumulation=2, clipping=0.3, **strategy))
        for kind in SHARED_OUT
    }


@check
def states_kept(rank: int, world: int, folder: Path) -> Any:
    engine = program("unroll", rank, world, strategy="zero" if world > 1 else "cpu")
    engine.run()
    optimizer = engine.low.optimizer
    numbers = [i for i, p in enumerate(engine.low.module.parameters()) if p in optimizer.state]
    whole = engine.low.state_dict()["optimizer"]["state"]
    return numbers, {i: {k: v.clone() for k, v in s.items()} for i, s in whole.items()}


@check
def shared_out_rolled_back(rank: int, world: int, folder: Path) -> Any:
    strategy = "zero" if world > 1 else "cpu"
    return ran(program("sama", rank, world, roll_back=True, strategy=strategy))


@check
def shared_out_resumed(rank: int, world: int, folder: Path) -> Any:
    zero = {"strategy": "zero" if world > 1 else "cpu"}
    whole = program("sama", rank, world, train_iters=12, **zero)
    first = program("sama", rank, world, train_iters=6, **zero)
    first.run()
    first.save(folder / "first.pt")
    again = program("sama", rank, world, train_iters=12, **zero)
    again.load(folder / "first.pt")
    return ran(whole), ran(again)


@check
def one_state_for_all(rank: int, world: int, folder: Path) -> Any:
    class Closing(Fit):
        def custom_optimizer_step(self) -> None:
            """Would give the closure."""

    module = nn.Linear(3, 1).double()
    problem = Closing(
        "fit", Config(), module, torch.optim.LBFGS(module.parameters()), train_data_loader=[1]
    )
    Engine([problem], run_config(world, strategy="zero"))


@check
def chains(rank: int, world: int, folder: Path) -> Any:
    return {kind: ran(chain(kind, rank, world)) for kind in ("darts", "cg")}


@check
def rolled_back(rank: int, world: int, folder: Path) -> Any:
    return ran(program("darts", rank, world, accumulation=2, roll_back=True))


@check
def batch_norm_together(rank: int, world: int, folder: Path) -> Any:
    kinds = ("darts", "reweighting", "reweighting forward mode", "cg", "unroll", "unroll one-sided")
    return {
        kind: ran(program(kind, rank, world, norm=batch_norm, sync_batch_norm=world > 1))
        for kind in kinds
    }


@check
def batch_norm_apart(rank: int, world: int, folder: Path) -> Any:
    return ran(program("reweighting", rank, world, norm=batch_norm))


@check
def validations(rank: int, world: int, folder: Path) -> Any:
    remember = Remember()
    engine = program(
        "darts", rank, world, engine=Measured, hooks=[remember], valid_step=2, early_stopping=True
    )
    engine.run()
    return remember.stats


@check
def gradients_seen(rank: int, world: int, folder: Path) -> Any:
    remember = Remember()
    engine = program("darts", rank, world, hooks=[remember])
    engine.run()
    return {"gradients": remember.gradients}


@check
def plateau(rank: int, world: int, folder: Path) -> Any:
    engine, fit = alone(rank, world, Net(3), batches(1, 3, rank, world), train_iters=12)
    fit.set_scheduler(
        torch.optim.lr_scheduler.ReduceLROnPlateau(fit.optimizer, patience=0, threshold=0.1)
    )
    engine.run()
    return fit.optimizer.param_groups[0]["lr"], parameters(engine)


@check
def reductions(rank: int, world: int, folder: Path) -> Any:
    engine = program("darts", rank, world)
    counts = [getattr(engine.processes, "reductions", 0)]
    for _ in range(4):
        engine.global_step += 1
        engine.train_step()
        counts.append(getattr(engine.processes, "reductions", 0))
    return counts


@check
def averages(rank: int, world: int, folder: Path) -> Any:
    ema, adaptive = EMAHook("low", 0.9), AdaptiveInterval("top", patience=2)
    engine = program("darts", rank, world, accumulation=2, hooks=[ema, adaptive], train_iters=40)
    engine.run()
    teacher = torch.cat([t.reshape(-1) for t in ema.teacher().parameters()])
    return {**parameters(engine), "teacher": teacher, "interval": torch.tensor(adaptive.interval)}


@check
def loaders(rank: int, world: int, folder: Path) -> Any:
    data = TensorDataset(torch.arange(22.0).reshape(11, 2), torch.arange(11.0))
    whole = labelled(torch.arange(22.0).reshape(11, 2), torch.arange(11))
    size = 4 // world
    generator = torch.Generator().manual_seed(3)
    given: dict[str, Any] = {
        "shuffled": DataLoader(data, size, shuffle=True),
        "own generator": DataLoader(data, size, shuffle=True, generator=generator),
        "in order": DataLoader(data, size),
        "tensors": TensorLoader(whole, size, seed=2),
        "replacement": TensorLoader(whole, size, seed=2, with_replacement=True),
        "list": [(torch.zeros(1, 2), torch.full((1,), float(rank)))],
    }
    if world > 1:
        sampler: Any = DistributedSampler(data)
        given["own sampler"] = DataLoader(data, size, sampler=sampler)
    found = {}
    for name, loader in given.items():
        _, fit = alone(rank, world, nn.Linear(2, 1), loader)
        found[name] = [fit.get_batch()[1].tolist() for _ in range(7)]
    return found


@check
def own_batches(rank: int, world: int, folder: Path) -> Any:
    data = TensorDataset(torch.zeros(6, 2), torch.zeros(6))
    batched: Any = Pairs(range(6), 2, False)
    alone(rank, world, nn.Linear(2, 1), DataLoader(data, batch_sampler=batched))


class Pairs(BatchSampler):
    """Batches that know nothing of several processes."""


@check
def different_modules(rank: int, world: int, folder: Path) -> Any:
    alone(rank, world, nn.Linear(3, 1 + rank), batches(1, 1, rank, world))


@check
def different_names(rank: int, world: int, folder: Path) -> Any:
    module = nn.Linear(3, 1).double()
    name = "same" if rank == 0 else "other"
    problem = Judge(
        name, Config(), module, torch.optim.SGD(module.parameters(), 0.1), train_data_loader=[1]
    )
    Engine([problem], run_config(world))


@check
def different_precisions(rank: int, world: int, folder: Path) -> Any:
    """As where a processor computes in bfloat16 and another does not."""
    program("darts", rank, world, precision=("fp32", "bf16")[rank])


@check
def reinforce(rank: int, world: int, folder: Path) -> Any:
    kinds = dict(TYPES)
    TYPES["darts"] = Reinforce(samples=2)
    try:
        program("darts", rank, world)
    finally:
        TYPES.update(kinds)


@check
def streams(rank: int, world: int, folder: Path) -> Any:
    torch.default_generator.manual_seed(5)
    alone(rank, world, Net(3), batches(1, 1, rank, world))
    return torch.rand(3)


@check
def unused(rank: int, world: int, folder: Path) -> Any:
    """Each process leaves out another layer, and all of them a third."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(3, 1) for _ in range(3)]).double()

    class Sides(ImplicitProblem):
        def training_step(self, batch: Any) -> Any:
            parts, own = self.module.parts, rank if world > 1 else None
            chosen = [0, 1] if own is None else [own]
            halves = [b[::2] for b in batch], [b[1::2] for b in batch]
            shares = halves if own is None else [batch]
            losses = [
                ((parts[i](x).squeeze(1) - y) ** 2).mean()
                for i, (x, y) in zip(chosen, shares, strict=True)
            ]
            return sum(losses) / len(losses)

    torch.default_generator.manual_seed(0)
    engine, fit = alone(rank, world, Halves(), batches(1, 2, rank, world), Sides)
    fit.set_optimizer(torch.optim.Adam(fit.module.parameters(), 0.1, weight_decay=0.1))
    return ran(engine)


@check
def redrawn(rank: int, world: int, folder: Path) -> Any:
    class Restarted(Fit):
        def on_inner_loop_start(self) -> None:
            for p in self.module.parameters():
                p.data.normal_()

    torch.default_generator.manual_seed(0)
    engine, _ = alone(rank, world, Net(3), batches(1, 2, rank, world), Restarted)
    return ran(engine)


@check
def audited(rank: int, world: int, folder: Path) -> Any:
    found = []
    for kind in ("darts", "unroll one-sided", "cg"):
        report = program(kind, rank, world).check_hypergradient()[0]
        found.append(report.converged.relative_error)
    return found


@check
def stopped_by_one(rank: int, world: int, folder: Path) -> Any:
    class Stop(Hook):
        def iteration_end(self, engine: Engine) -> None:
            if rank == world - 1 and engine.global_step == 3:
                engine.stop("enough")

    engine = program("darts", rank, world, hooks=[Stop()])
    engine.run()
    return engine.global_step


@check
def signalled(rank: int, world: int, folder: Path) -> Any:
    class Signal(Hook):
        def iteration_end(self, engine: Engine) -> None:
            if rank == world - 1 and engine.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        engine = program("darts", rank, world, hooks=[Signal()])
        engine.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    return engine.global_step, heard


class Noisy(nn.Module):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop = Net(3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.drop(x))


def saving(
    rank: int,
    world: int,
    folder: Path,
    iterations: int,
    *,
    every: int = 100,
    hooks: Sequence[Hook] = (),
) -> Engine:
    torch.default_generator.manual_seed(0)
    whole = labelled(batches(1, 1, 0, 1)[0][0], torch.arange(8))
    data = TensorDataset(whole.inputs, whole.labels)
    engine, _ = alone(
        rank,
        world,
        Noisy(),
        (TensorLoader(whole, 2), DataLoader(data, 2, shuffle=True)),
        Both,
        train_iters=iterations,
        checkpoint_dir=folder,
        checkpoint_step=every,
        keep_last=None,
        logger_type="csv",
        log_dir=folder / "logs",
        hooks=hooks,
    )
    return engine


class Both(ImplicitProblem):
    """Trains on the batches of two loaders."""

    def training_step(self, batch: Any) -> Any:
        return sum(((self.module(x).squeeze(1) - y) ** 2).mean() for x, y in batch)


@check
def resumed(rank: int, world: int, folder: Path) -> Any:
    whole = saving(rank, world, folder / "whole", 7)
    whole.run()
    first = saving(rank, world, folder / "parts", 3)
    first.run()
    again = saving(rank, world, folder / "parts", 7)
    again.run(resume="auto")
    return parameters(whole), parameters(again)


@check
def resumed_inside_a_loop(rank: int, world: int, folder: Path) -> Any:
    kind = "unroll one-sided"
    whole = program(kind, rank, world, accumulation=2, train_iters=12)
    first = program(kind, rank, world, accumulation=2, train_iters=7)
    first.run()
    first.save(folder / "inside.pt")
    again = program(kind, rank, world, accumulation=2, train_iters=12)
    again.load(folder / "inside.pt")
    return ran(whole), ran(again)


@check
def place(rank: int, world: int, folder: Path) -> Any:
    return str(folder.parent)


@check
def rank_zero(rank: int, world: int, folder: Path) -> Any:
    engine = saving(rank, world, folder / "rows", 2)
    engine.run()
    return engine.is_rank_zero(), engine.problems[0].is_rank_zero()
