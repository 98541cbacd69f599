"""What each of several processes does for the tests of sharded parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from metaweight import (
    SAMA,
    Config,
    ConfigurationError,
    Engine,
    FiniteDifference,
    Hook,
    ImplicitProblem,
    NormLogger,
    Penalty,
    ReweightedProblem,
    Reweighting,
    VarianceReduction,
    ZeroOrder,
)
from metaweight.averaging import EMAHook

from .checks import Check, run_checks
from .shared_out import Judge, batches, run_config

RESULTS: dict[str, Check] = {}
METHODS: dict[str, Any] = {
    "reweighting": Reweighting(),
    "reweighting one-sided": Reweighting(derivative="one_sided"),
    "darts": FiniteDifference(),
    "darts multitask": FiniteDifference(multitask=True),
    "sama": SAMA(alpha=0.01),
    "penalty": Penalty(steps=3, lr=0.1),
    "penalty, plain": Penalty(steps=3, lr=0.1),
    "bome": Penalty(steps=3, lr=0.1, form="bome"),
    "zero order": ZeroOrder(samples=2),
}
DECLARED = ("reweighting", "reweighting one-sided", "penalty", "bome")
# At their usual settings these divide by small displacements, which magnifies rounding in single
# precision a thousandfold.
ROUNDING = {
    "reweighting one-sided": Reweighting(derivative="one_sided", alpha=0.01),
    "penalty": Penalty(strength=10.0, steps=3, lr=0.1),
    "penalty, plain": Penalty(strength=10.0, steps=3, lr=0.1),
    "bome": Penalty(strength=10.0, steps=3, lr=0.1, form="bome"),
}
FORMS = ("reweighting", "darts", "sama", "penalty", "zero order")
SINGLE = ("reweighting one-sided", "darts", "sama", "penalty", "zero order")


def check(function: Check) -> Check:
    """Let all processes run a function, by its name."""
    RESULTS[function.__name__] = function
    return function


class Blocks(nn.Module):
    """A residual network of a few blocks, without batch norm, of odd widths."""

    def __init__(self, inputs: int = 3, width: int = 7, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)
        )
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


class _Losses:
    def sample_losses(self, batch: Any) -> Tensor:
        x, y = batch
        losses: Tensor = (self.module(x).squeeze(1) - y) ** 2  # type: ignore[attr-defined]
        return losses

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        weights: Tensor = self.top(losses[:, None]).sigmoid().squeeze(1)  # type: ignore[attr-defined]
        return weights


class Declared(_Losses, ReweightedProblem):
    pass


class Weighted(_Losses, ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        losses = self.sample_losses(batch)
        return (self.sample_weights(losses.detach(), batch) * losses).mean()


def strategy(world: int) -> dict[str, Any]:
    return {"strategy": "fsdp" if world > 1 else "cpu"}


def data(seed: int, number: int, rank: int, world: int, dtype: torch.dtype) -> list[Any]:
    return [(x.to(dtype), y.to(dtype)) for x, y in batches(seed, number, rank, world)]


def program(
    kind: str,
    rank: int,
    world: int,
    *,
    dtype: torch.dtype = torch.float64,
    accumulation: int = 1,
    clipping: float = 0.0,
    optimizer: Callable[[Iterator[nn.Parameter]], Any] | None = None,
    hooks: Sequence[Hook] = (),
    lower: type[Any] | None = None,
    engine: type[Engine] = Engine,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Engine:
    """A network below a weighting network, its state the same whatever ``world``."""
    torch.default_generator.manual_seed(1 + rank)
    low = Blocks().to(dtype)
    top = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    if rank == 0:
        torch.default_generator.manual_seed(7)
    together = {"gradient_accumulation": accumulation, "gradient_clipping": clipping}
    own = {"type": METHODS.get(kind, kind), "unroll_steps": 2, **together, **(config or {})}
    if optimizer is None and kind == "sama":
        optimizer = lambda p: torch.optim.Adam(p, 0.02)  # noqa: E731
    elif optimizer is None:
        optimizer = lambda p: torch.optim.SGD(p, 0.1, momentum=0.5)  # noqa: E731
    cls = lower or (Declared if kind in DECLARED else Weighted)
    loaders = [data(seed, number, rank, world, dtype) for seed, number in ((3, 5), (4, 3))]
    classifier = cls(
        "low", Config(**own), low, optimizer(low.parameters()), train_data_loader=loaders[0]
    )
    adam = torch.optim.Adam(top.parameters(), 0.05)
    judge = Judge("top", Config(**together), top, adam, train_data_loader=loaders[1])
    edges = {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}}
    iterations = 4 * accumulation
    given = {"train_iters": iterations, **strategy(world), **settings}
    return engine([judge, classifier], run_config(world, **given), edges, hooks=hooks)


def whole(engine: Engine) -> dict[str, Tensor]:
    """All parameters, flat, by problem; all processes ask for it."""
    return {
        p.name: torch.cat([whole_of(t).reshape(-1) for t in p.module.parameters()])
        for p in engine.problems
    }


def whole_of(tensor: Tensor) -> Tensor:
    found = tensor.detach()
    gather = getattr(found, "full_tensor", None)
    return found.clone() if gather is None else gather()


def ran(engine: Engine) -> dict[str, Tensor]:
    engine.run()
    return whole(engine)


@check
def methods(rank: int, world: int, folder: Path) -> Any:
    """A form of every method accumulates and clips; plain steps are taken in single precision."""
    return _accumulated(FORMS, rank, world)


def other_methods(rank: int, world: int, folder: Path) -> Any:
    """The other forms, and plain steps of all."""
    others = [kind for kind in METHODS if kind not in FORMS]
    plain = {f"{kind}, plain": ran(program(kind, rank, world)) for kind in METHODS}
    return _accumulated(others, rank, world) | plain


def _accumulated(kinds: Sequence[str], rank: int, world: int) -> dict[str, Any]:
    return {kind: ran(program(kind, rank, world, accumulation=2, clipping=0.3)) for kind in kinds}


def _in_single_precision(kinds: Sequence[str], rank: int, world: int) -> Any:
    found = {}
    for kind in kinds:
        config = {"type": ROUNDING.get(kind, METHODS[kind])}
        found[kind] = ran(program(kind, rank, world, config=config, dtype=torch.float32))
    return found


@check
def in_single_precision(rank: int, world: int, folder: Path) -> Any:
    """One form of every method."""
    return _in_single_precision(SINGLE, rank, world)


def other_forms_in_single_precision(rank: int, world: int, folder: Path) -> Any:
    return _in_single_precision([kind for kind in METHODS if kind not in SINGLE], rank, world)


@check
def in_groups(rank: int, world: int, folder: Path) -> Any:
    """Two groups with learning rates of their own, one of them scheduled, and a frozen weight."""
    found = {}
    for name, make in OPTIMIZERS.items():
        torch.default_generator.manual_seed(0)
        module = Blocks().double()
        module.first.bias.requires_grad_(False)
        groups = [
            {"params": list(module.first.parameters())},
            {"params": [*module.blocks.parameters(), *module.last.parameters()], "lr": 0.02},
        ]
        loader = data(1, 3, rank, world, torch.float64)
        optimizer = make(groups)
        problem = Fit("fit", Config(), module, optimizer, train_data_loader=loader)
        problem.set_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5))
        settings = {"train_iters": 4, **strategy(world)}
        found[name] = ran(Engine([problem], run_config(world, **settings)))
    return found


class Fit(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch
        return ((self.module(x).squeeze(1) - y) ** 2).mean()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
}


class Refuse(Hook):
    """Refuses the third and the sixth attempt of a step of the lower problem."""

    def __init__(self) -> None:
        self.asked = 0

    def accepts(self, engine: Engine, problem: Any, result: Any) -> bool:
        self.asked += problem.name == "low"
        return self.asked not in (3, 6)


@check
def rolled_back(rank: int, world: int, folder: Path) -> Any:
    return {
        "taken": ran(program("sama", rank, world, non_finite="raise", roll_back=True)),
        "refused": ran(
            program("darts", rank, world, hooks=[Refuse()], roll_back=True, train_iters=8)
        ),
    }


@check
def averages(rank: int, world: int, folder: Path) -> Any:
    """The average stands in for the network in validations, and goes on from a checkpoint."""
    ema, norms = EMAHook("low", 0.9, validate_teacher=True), NormLogger(every=1)
    engine = program("reweighting", rank, world, hooks=[ema, norms], engine=Measured, valid_step=2)
    end = ran(engine)
    with ema.applied():
        teacher = whole(engine)["low"]
    try:
        ema.teacher()
        said = "copied"
    except ConfigurationError as error:
        said = str(error)
    return {**end, "teacher": teacher, "losses": torch.stack(engine.losses)}, said


@check
def corrected(rank: int, world: int, folder: Path) -> Any:
    """Gradients by tables of shards, which go on from a checkpoint."""
    whole_run, first, again = (
        program("darts", rank, world, hooks=[VarianceReduction()], train_iters=n)
        for n in (12, 7, 12)
    )
    first.run()
    first.save(folder / "corrected.ckpt")
    again.load(folder / "corrected.ckpt")
    return {"whole": ran(whole_run), "resumed": ran(again)}


class Measured(Engine):
    """Measures the lower network on a batch that all processes share."""

    def validation(self) -> Any:
        x, y = data(9, 1, 0, 1, torch.float64)[0]
        with torch.no_grad():
            loss = ((self.low(x).squeeze(1) - y) ** 2).mean()
        self.__dict__.setdefault("losses", []).append(loss)
        return {"loss": loss}


class Poisoned(Weighted):
    """Meets a number that is not finite in the last process, in its third step."""

    def training_step(self, batch: Any) -> Any:
        loss = super().training_step(batch)
        processes = self.step_state.processes
        bad = self.count == 3 and processes.rank == processes.world - 1
        return loss * (torch.nan if bad else 1.0)


@check
def skipped(rank: int, world: int, folder: Path) -> Any:
    return ran(program("darts", rank, world, lower=Poisoned, non_finite="skip"))


@check
def held(rank: int, world: int, folder: Path) -> Any:
    """Entries this process holds of parameters and optimizer state, between steps."""
    engine = program("sama", rank, world)
    engine.run()
    states = engine.low.optimizer.state.values()
    moments = [v for entries in states for v in entries.values() if v.dim()]
    tensors = [*engine.low.module.parameters(), *moments]
    top = sum(p.numel() for p in engine.top.module.parameters())
    return sum(getattr(t, "_local_tensor", t).numel() for t in tensors), top


@check
def resumed(rank: int, world: int, folder: Path) -> Any:
    """Ends of a run, and of one that was interrupted amid a loop and an accumulation."""
    settings = {"accumulation": 2, "roll_back": True}
    uninterrupted = program("sama", rank, world, **settings, train_iters=12)
    first = program("sama", rank, world, **settings, train_iters=7)
    first.run()
    first.save(folder / "amid.ckpt")
    again = program("sama", rank, world, **settings, train_iters=12)
    again.load(folder / "amid.ckpt")
    return ran(uninterrupted), ran(again)


@check
def kept(rank: int, world: int, folder: Path) -> Any:
    """Names in the folder of a run that keeps two checkpoints."""
    settings = {"checkpoint_dir": folder, "checkpoint_step": 2, "keep_last": 2}
    program("sama", rank, world, **settings).run()
    engine = program("sama", rank, world, train_iters=6, **settings)
    engine.run(resume="auto")
    return sorted(file.name for file in folder.iterdir()), whole(engine)


def state_of(engine: Engine) -> dict[str, Tensor]:
    """Parameters and optimizer state, whole."""
    states = engine.low.optimizer.state.values()
    moments = [whole_of(v).reshape(-1) for entries in states for v in entries.values()]
    return {**whole(engine), "state": torch.cat(moments)}


@check
def handed_on(rank: int, world: int, folder: Path) -> Any:
    """Saves, and loads what other numbers of processes have saved."""
    found = {}
    for other in (1, 2, 4):
        path = folder.parent.parent / f"{other}.ckpt"
        if path.exists():
            engine = program("sama", rank, world)
            engine.load(path)
            found[other] = state_of(engine)
            engine.run()
    engine = program("sama", rank, world)
    engine.run()
    engine.save(folder.parent.parent / f"{world}.ckpt")
    return found, state_of(engine)


SLOW: dict[str, Check] = {
    "other_forms_in_single_precision": other_forms_in_single_precision,
    "other_methods": other_methods,
}


def _told(make: Callable[[], Any]) -> str:
    try:
        make()
    except ConfigurationError as error:
        return str(error)
    return "taken"


@check
def refused(rank: int, world: int, folder: Path) -> Any:
    def told(kind: str, **settings: Any) -> str:
        return _told(lambda: program(kind, rank, world, **settings))

    found = {kind: told(kind) for kind in ("cg", "neumann", "nystrom")}
    found["forward mode"] = told(
        "reweighting", config={"type": Reweighting(derivative="forward_mode")}
    )
    found["exact"] = told("sama", config={"type": SAMA(preconditioner="exact")})
    found["adamax"] = told("sama", optimizer=lambda p: torch.optim.Adamax(p, 0.1))
    found["lbfgs"] = told("darts", optimizer=torch.optim.LBFGS)
    found["fp16"] = told("darts", config={"precision": "fp16"})
    found["bf16"] = told("darts", precision="bf16")
    found["stepped"] = told("darts", optimizer=_stepped)
    engine = program("darts", rank, world)
    found["checked"] = _told(engine.check_hypergradient)
    return found


@check
def sharded_by_hand(rank: int, world: int, folder: Path) -> Any:
    """Said of a module that the user has sharded; and the end of a run with it, under FSDP."""
    program("darts", rank, world)

    def made(chosen: str) -> Engine:
        torch.default_generator.manual_seed(0)
        module = Blocks().double()
        if world > 1:
            fully_shard(module, mesh=init_device_mesh("cpu", (world,)))
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        loader = data(1, 3, rank, world, torch.float64)
        problem = Fit("fit", Config(), module, optimizer, train_data_loader=loader)
        return Engine([problem], run_config(world, strategy=chosen if world > 1 else "cpu"))

    said = {chosen: _told(lambda chosen=chosen: made(chosen)) for chosen in ("distributed", "zero")}
    return ran(made("fsdp")), said


def _stepped(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(parameters, 0.1)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return optimizer


if __name__ == "__main__":
    run_checks({**RESULTS, **SLOW}, Path(sys.argv[1]), sys.argv[2:])
