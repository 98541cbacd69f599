"""What each of two processes does for the tests of parameters that processes share out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import (
    AdaptiveInterval,
    CheckpointError,
    Config,
    Engine,
    Hook,
    ImplicitProblem,
    NormLogger,
)
from metaweight.averaging import EMAHook

from .checks import Check, run_checks
from .process_checks import Fit, Measured, Remember
from .shared_out import TYPES, Net, batches, chain, parameters, program, run_config

RESULTS: dict[str, Check] = {}
QUICK = ("darts", "reweighting", "cg", "unroll one-sided")
SLOW = (
    "other_methods",
    "chains",
    "batch_norm_together",
    "averages",
    "audited",
    "half_precision",
    "resumed_amid_a_loop",
)


def check(function: Check) -> Check:
    """Let both processes run a function, by its name."""
    RESULTS[function.__name__] = function
    return function


def fsdp(world: int) -> dict[str, Any]:
    return {"strategy": "fsdp" if world > 1 else "cpu"}


def whole(engine: Engine) -> dict[str, Tensor]:
    with engine.whole_parameters():
        return parameters(engine)


def ran(engine: Engine) -> dict[str, Tensor]:
    engine.run()
    return whole(engine)


def ran_within(engine: Engine) -> dict[str, Tensor]:
    """Steps taken where parameters are whole in between."""
    with engine.whole_parameters():
        for _ in range(4):
            engine.global_step += 1
            engine.train_step()
        return parameters(engine)


def alone(
    world: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    cls: type[Any] = Fit,
    hooks: Sequence[Hook] = (),
    config: Config | None = None,
    **settings: Any,
) -> Engine:
    """The engine of one problem, called ``fit``."""
    problem = cls("fit", config or Config(), module, optimizer, train_data_loader=loader)
    return Engine([problem], run_config(world, **fsdp(world), **settings), hooks=hooks)


def _methods(kinds: Sequence[str], rank: int, world: int) -> Any:
    return {
        (kind, accumulation): ran(
            program(kind, rank, world, accumulation=accumulation, clipping=clipping, **fsdp(world))
        )
        for kind in kinds
        for accumulation, clipping in ((1, 0.0), (2, 0.3))
    }


@check
def methods(rank: int, world: int, folder: Path) -> Any:
    """With accumulation gradients are clipped too."""
    return _methods(QUICK, rank, world)


@check
def other_methods(rank: int, world: int, folder: Path) -> Any:
    return _methods([kind for kind in TYPES if kind not in QUICK], rank, world)


@check
def chains(rank: int, world: int, folder: Path) -> Any:
    return {kind: ran(chain(kind, rank, world, **fsdp(world))) for kind in ("darts", "cg")}


@check
def rolled_back(rank: int, world: int, folder: Path) -> Any:
    """Once with a hook that refuses a step where it is taken again."""
    settings = {"roll_back": True, **fsdp(world)}
    return {
        "taken": ran(program("sama", rank, world, non_finite="raise", **settings)),
        "refused": ran(program("darts", rank, world, hooks=[Refuse()], **settings)),
        "within": ran_within(program("darts", rank, world, **settings)),
    }


class Refuse(Hook):
    """Refuses the third and the sixth attempt of a step of the lower problem."""

    def __init__(self) -> None:
        self.asked = 0

    def accepts(self, engine: Engine, problem: Any, result: Any) -> bool:
        self.asked += problem.name == "low"
        return self.asked not in (3, 6)


@check
def batch_norm_together(rank: int, world: int, folder: Path) -> Any:
    settings = {"norm": True, "sync_batch_norm": world > 1, **fsdp(world)}
    return {kind: ran(program(kind, rank, world, **settings)) for kind in ("reweighting", "unroll")}


@check
def averages(rank: int, world: int, folder: Path) -> Any:
    """The teacher stands in for the student in validations."""
    ema, adaptive = EMAHook("low", 0.9, validate_teacher=True), AdaptiveInterval("top", patience=2)
    engine = program(
        "darts",
        rank,
        world,
        accumulation=2,
        hooks=[ema, adaptive, NormLogger(every=1)],
        train_iters=40,
        valid_step=8,
        engine=Measured,
        **fsdp(world),
    )
    engine.run()
    with engine.whole_parameters():
        teacher = torch.cat([t.reshape(-1) for t in ema.teacher().parameters()])
    return {**whole(engine), "teacher": teacher, "interval": torch.tensor(adaptive.interval)}


@check
def audited(rank: int, world: int, folder: Path) -> Any:
    """Relative errors that checks of hypergradients report, and what comes of going on."""
    found = {}
    for kind in ("darts", "unroll one-sided", "cg"):
        engine = program(kind, rank, world, **fsdp(world))
        (report,) = engine.check_hypergradient()
        found[kind] = (report.converged.relative_error, ran(engine))
    return found


@check
def half_precision(rank: int, world: int, folder: Path) -> Any:
    """Ends of runs with whole parameters and with parts, with a loss scaler and without."""
    found = {}
    for precision in ("bf16", "fp16"):
        ends = []
        for strategy in ("distributed", "fsdp"):
            torch.manual_seed(0)
            module = Net(3).float()
            optimizer = torch.optim.Adam(module.parameters(), 0.05)
            config = Config(precision=precision, gradient_clipping=0.1)
            loader = [(x.float(), y.float()) for x, y in batches(1, 3, rank, world)]
            problem = Fit("fit", config, module, optimizer, train_data_loader=loader)
            ends.append(ran(Engine([problem], run_config(world, strategy=strategy))))
        found[precision] = ends
    return found


@check
def gradients_seen(rank: int, world: int, folder: Path) -> Any:
    remember = Remember()
    program("darts", rank, world, hooks=[remember], **fsdp(world)).run()
    return {"gradients": remember.gradients}


class Shapes(nn.Module):
    """Parameters of every shape: one number, fewer than processes, frozen, shared, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5).double()
        self.second = nn.Linear(5, 5).double()
        self.tied = nn.Linear(5, 5).double()
        self.tied.weight = self.second.weight
        self.last = nn.Linear(5, 1).double()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.turned = nn.Parameter(torch.randn(3, 2, dtype=torch.float64).T)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tied(self.second(self.first(x).tanh())).tanh()
        return self.last(h) * self.scale + self.shift + (self.turned @ x.T).sum(0)[:, None]


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.05),
    "radam": lambda p: torch.optim.RAdam(p, 0.05),
    "adamax": lambda p: torch.optim.Adamax(p, 0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.05, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, 0.05),
    "asgd": lambda p: torch.optim.ASGD(p, 0.05),
    "own": lambda p: Signs(p, {"lr": 0.01}),
}


class Signs(torch.optim.Optimizer):
    """An optimizer that torch knows nothing of."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.mul_(0.5).add_(p.grad)
                    p.sub_(mean.sign(), alpha=group["lr"])


@check
def optimizers(rank: int, world: int, folder: Path) -> Any:
    """Two groups with learning rates of their own, one of them scheduled."""
    found = {}
    for name, make in OPTIMIZERS.items():
        torch.manual_seed(0)
        module = Shapes()
        groups = [
            {"params": [*module.first.parameters(), module.scale]},
            {"params": [*module.second.parameters(), *module.last.parameters(), module.turned]},
        ]
        optimizer = make(groups)
        optimizer.param_groups[1]["lr"] *= 0.5
        engine = alone(world, module, optimizer, batches(1, 3, rank, world))
        engine.fit.set_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5))
        found[name] = ran(engine)
    return found


@check
def channels_last(rank: int, world: int, folder: Path) -> Any:
    class Images(ImplicitProblem):
        def training_step(self, batch: Any) -> Any:
            x, y = batch
            return ((self.module(x.reshape(-1, 3, 1, 1)).flatten() - y) ** 2).mean()

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    loader = batches(1, 3, rank, world)
    engine = alone(world, module, optimizer, loader, Images, channels_last=True)
    found = ran(engine)
    with engine.whole_parameters():
        last = module[0].weight.is_contiguous(memory_format=torch.channels_last)
    return {**found, "last": torch.tensor(last)}


@check
def altered(rank: int, world: int, folder: Path) -> Any:
    """Parameters that callbacks change, whole as they expect them, and another optimizer."""

    class Clamped(Fit):
        def param_callback(self) -> None:
            weight = self.module.layers[0].weight.data
            assert weight.shape == (6, 3)
            weight.div_(weight.norm())

        def on_inner_loop_start(self) -> None:
            for p in self.module.layers[2].parameters():
                p.data.mul_(0.9)

    torch.manual_seed(0)
    module = Net(3)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    engine = alone(world, module, optimizer, batches(1, 3, rank, world), Clamped)
    engine.fit.set_optimizer(torch.optim.Adam(module.parameters(), 0.1))
    return ran(engine)


@check
def replaced(rank: int, world: int, folder: Path) -> Any:
    """Another module after some steps."""
    torch.manual_seed(0)
    first, second = Net(3), Net(3)
    optimizer = torch.optim.Adam(first.parameters(), 0.1)
    engine = alone(world, first, optimizer, batches(1, 3, rank, world))
    engine.run()
    with engine.whole_parameters():
        old = torch.cat([p.detach().reshape(-1) for p in first.parameters()])
    engine.fit.set_module(second)
    engine.fit.set_optimizer(torch.optim.Adam(second.parameters(), 0.1))
    engine.train_iters = 8
    engine.run()
    held = torch.tensor([p.numel() for p in second.parameters()])
    return {"old": old, **whole(engine), "held": held}


@check
def rebuilt(rank: int, world: int, folder: Path) -> Any:
    """The same problems in another engine after some steps, amid a loop."""
    first = program("unroll", rank, world, train_iters=3, **fsdp(world))
    first.run()
    edges = {"u2l": {first.top: [first.low]}, "l2u": {first.low: [first.top]}}
    settings = run_config(world, train_iters=4, **fsdp(world))
    return ran(Engine([first.top, first.low], settings, edges))


@check
def held_at_rest(rank: int, world: int, folder: Path) -> Any:
    """Bytes in memory of parameters, gradients, optimizer state and recorded steps."""
    seen: dict[str, list[list[int]]] = {"within": [], "between": []}

    class Look(Hook):
        reads_parameters = False

        def after_gradient(self, engine: Engine, problem: Any) -> None:
            seen["within"].append(_bytes_held(engine))

        def iteration_end(self, engine: Engine) -> None:
            seen["between"].append(_bytes_held(engine))

    engine = program("unroll", rank, world, hooks=[Look()], train_iters=4, **fsdp(world))
    seen["between"].append(_bytes_held(engine))
    engine.run()
    seen["between"].append(_bytes_held(engine))
    return seen


def _bytes_held(engine: Engine) -> list[int]:
    parameters = [p for problem in engine.problems for p in problem.module.parameters()]
    entries = [s for problem in engine.problems for s in problem.optimizer.state.values()]
    states = [v for state in entries for v in state.values() if isinstance(v, Tensor) and v.dim()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    recorded = []
    for update in engine.low.step_state.trajectory.updates:
        moment = update.moment
        recorded += [*update.start.values(), *moment.gradients.values()]
        recorded += [t for state in moment.states.values() for t in state.values()]
    recorded = [t for t in recorded if isinstance(t, Tensor) and t.dim()]
    return [
        sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in part}.values())
        for part in (parameters, gradients, states, recorded)
    ]


@check
def used_at_rest(rank: int, world: int, folder: Path) -> Any:
    ema = EMAHook("low", 0.9)
    engine = program("darts", rank, world, hooks=[ema], **fsdp(world))
    engine.run()
    said = []
    inputs = torch.zeros(1, 3, dtype=torch.float64)
    for use in (lambda: engine.low(inputs), engine.low.module.state_dict, ema.teacher):
        try:
            use()
        except ValueError as error:
            said.append(str(error))
    with torch.inference_mode(), engine.whole_parameters():
        output = engine.low(inputs).clone()
        saved = {k: v.clone() for k, v in engine.low.module.state_dict().items()}
    return said, {"output": output, "saved": saved, **ran(engine)}


@check
def whole_states(rank: int, world: int, folder: Path) -> Any:
    engine = program("unroll", rank, world, **fsdp(world))
    engine.run()
    state = engine.low.state_dict()
    again = program("unroll", rank, world, **fsdp(world))
    again.low.load_state_dict(state)
    return {
        "module": dict(state["module"]),
        "optimizer": state["optimizer"]["state"],
        "again": whole(again)["low"],
    }


def saving(rank: int, world: int, folder: Path, iterations: int, **settings: Any) -> Engine:
    """A program that saves every second iteration and keeps two of its checkpoints."""
    whole = {"checkpoint_dir": folder, "checkpoint_step": 2, "keep_last": 2, **settings}
    return program("sama", rank, world, train_iters=iterations, **whole, **fsdp(world))


@check
def kept(rank: int, world: int, folder: Path) -> Any:
    """Names of what is in the folder of a run, and ends of one that was interrupted and resumed."""
    first = saving(rank, world, folder, 6)
    first.run()
    first.processes.from_first(lambda: None)
    names = sorted(file.name for file in folder.iterdir())
    again = saving(rank, world, folder, 12)
    again.run(resume="auto")
    uninterrupted = program("sama", rank, world, train_iters=12, **fsdp(world))
    return names, whole(again), ran(uninterrupted)


@check
def saved(rank: int, world: int, folder: Path) -> Any:
    """A checkpoint, written twice to one file."""
    engine = program("sama", rank, world, train_iters=6, **fsdp(world))
    engine.save(folder / "twice.ckpt")
    engine.run()
    engine.save(folder / "twice.ckpt")
    return str(folder / "twice.ckpt"), whole(engine)


AMID = {
    "roll back": {"kind": "sama", "roll_back": True},
    "accumulation": {"kind": "unroll one-sided", "accumulation": 2},
}


@check
def resumed_amid_a_loop(rank: int, world: int, folder: Path) -> Any:
    found = {}
    for name, settings in AMID.items():
        whole_run = program(rank=rank, world=world, train_iters=12, **settings, **fsdp(world))
        first = program(rank=rank, world=world, train_iters=7, **settings, **fsdp(world))
        first.run()
        first.save(folder / f"{name}.ckpt")
        again = program(rank=rank, world=world, train_iters=12, **settings, **fsdp(world))
        again.load(folder / f"{name}.ckpt")
        found[name] = (ran(whole_run), ran(again))
    return found


# Where both loaders are between two epochs.
EPOCHS = 30


@check
def from_two(rank: int, world: int, folder: Path) -> Any:
    """A checkpoint of some processes, to go on from in another number."""
    engine = program("sama", rank, world, train_iters=EPOCHS, **fsdp(world))
    engine.run()
    engine.save(folder / "from.ckpt")
    return str(folder / "from.ckpt")


@check
def into_two(rank: int, world: int, folder: Path) -> Any:
    """Where a checkpoint of one process leads."""
    engine = program("sama", rank, world, train_iters=EPOCHS + 6, **fsdp(world))
    engine.load(folder.parent / "one.ckpt")
    return ran(engine)


@check
def not_written(rank: int, world: int, folder: Path) -> Any:
    """What is said, and what is left, when parts or the file cannot be written."""
    engine = program("sama", rank, world, **fsdp(world))
    (folder / "taken").mkdir(exist_ok=True)
    said = []
    for name in ("absent/file.ckpt", "taken"):
        try:
            engine.save(folder / name)
        except CheckpointError as error:
            said.append(str(error))
        engine.processes.from_first(lambda: None)
    return said, sorted(file.name for file in folder.iterdir())


def _refused(world: int, optimizer: Any, module: nn.Module | None = None) -> None:
    module = nn.Linear(3, 4).double() if module is None else module
    alone(world, module, optimizer(module.parameters()), [1])


@check
def one_state_for_all(rank: int, world: int, folder: Path) -> Any:
    _refused(world, torch.optim.LBFGS)


@check
def factored_state(rank: int, world: int, folder: Path) -> Any:
    _refused(world, torch.optim.Adafactor)


@check
def closure(rank: int, world: int, folder: Path) -> Any:
    class Closed(Fit):
        def custom_optimizer_step(self) -> None:
            self.optimizer.step(lambda: 0.0)

    module = Net(3)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    alone(world, module, optimizer, batches(1, 1, rank, world), Closed).run()


@check
def sharded_already(rank: int, world: int, folder: Path) -> Any:
    from torch.distributed.fsdp import fully_shard

    module = nn.Linear(3, 4).double()
    fully_shard(module)
    _refused(world, torch.optim.SGD, module)


if __name__ == "__main__":
    run_checks(RESULTS, Path(sys.argv[1]), sys.argv[2:])
