"""Programs that are saved after every step and resumed by another set of objects."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from metaweight.engines.checkpoint.state import engine_to_plain
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    IterativeProblem,
)
from metaweight.averaging import EMAHook
from metaweight.consistency import (
    ConsistencyMethod,
    MeanTeacher,
    Ramp,
    RampHook,
    SemiSupervisedProblem,
)
from metaweight.data import LabelledTensors, TensorLoader

from . import zoo
from .zoo import ColumnWeighed

FEATURES, CLASSES = 5, 3
EVERYWHERE = (3, 4, 5, 6)
"""Every place in loops, accumulations, epochs and intervals of up to four steps."""
Build = Callable[..., Engine]


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Batch norm and dropout between two layers, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(FEATURES, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(8, CLASSES),
        ).to(dtype)


def weight_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1), nn.Sigmoid()).to(dtype)


def samples(number: int, seed: int, dtype: torch.dtype = torch.float32) -> LabelledTensors:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, FEATURES, generator=generator).to(dtype)
    y = torch.randint(CLASSES, (number,), generator=generator)
    return LabelledTensors(x, y, y.clone(), torch.arange(number), CLASSES)


class Jitter:
    """Adds noise from torch's, NumPy's and Python's streams to batches."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape) + np.random.rand() * random.random()


class Noisy(Dataset[Any]):
    """Samples drawn with noise from all three streams, in the process that reads them."""

    def __init__(self, data: LabelledTensors) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(FEATURES) + np.random.randn() + random.random()
        return self.data.inputs[index] + 0.1 * noise, self.data.labels[index]


class Unrolled(IterativeProblem):
    def training_step(self, batch: Any) -> Tensor:
        losses = F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")
        return (self.upper(losses.detach().unsqueeze(1)).squeeze(1) * losses).mean()


class Judge(zoo.Judge):
    def training_step(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": super().training_step(batch), "noise": torch.rand(())}


class Measured(Engine):
    """Validates by the lower network's loss on fixed samples."""

    def validation(self) -> dict[str, float]:
        data = samples(16, 5, next(self.lower.module.parameters()).dtype)
        with torch.no_grad():
            loss = F.cross_entropy(self.lower.module(data.inputs), data.labels)
        return {"loss": float(loss)}


def loader(number: int, seed: int, batch: int = 6, **settings: Any) -> TensorLoader:
    return TensorLoader(samples(number, seed), batch, seed=seed, **settings)


def two_levels(
    kind: type[ImplicitProblem] | type[IterativeProblem] = ColumnWeighed,
    *,
    lower: Mapping[str, Any] | None = None,
    upper: Mapping[str, Any] | None = None,
    data: Callable[[], Any] | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    hooks: Callable[[], Any] = tuple,
    engine: type[Engine] = Measured,
    **settings: Any,
) -> Build:
    """Return a builder of a program that learns sample weights."""

    def build(**more: Any) -> Engine:
        net, weights = network(), weight_network()
        sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
        low_optimizer = sgd if optimizer is None else optimizer(net.parameters())
        low = kind(
            "lower",
            Config(log_step=1, **(lower or {})),
            net,
            low_optimizer,
            None if scheduler is None else scheduler(low_optimizer),
            loader(20, 1, transform=Jitter()) if data is None else data(),
        )
        top = Judge(
            "upper",
            Config(log_step=1, **(upper or {})),
            weights,
            torch.optim.Adam(weights.parameters(), 0.01),
            train_data_loader=loader(8, 2, 3),
        )
        chosen = {"train_iters": 9, "valid_step": 2, "strategy": "cpu", "logger_type": "csv"}
        return engine(
            [top, low],
            EngineConfig(**(chosen | settings | more)),
            {"u2l": {top: [low]}, "l2u": {low: [top]}},
            hooks=hooks(),
        )

    return build


def data_loader(workers: int, number: int = 20, **settings: Any) -> Callable[[], DataLoader[Any]]:
    """Return a builder of torch's own loader, shuffling, over noisy samples."""
    return lambda: DataLoader(
        Noisy(samples(number, 1)), batch_size=6, shuffle=True, num_workers=workers, **settings
    )


def seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def end_workers(engine: Engine) -> None:
    """Let go of loaders' workers now; found by the garbage collector, each takes 5 s to end."""
    for problem in engine.problems:
        for reading in problem.source.readings:
            reading.iterator = None


def everything(engine: Engine) -> dict[str, Any]:
    """Return the whole state of a program, but for the name of its run."""
    state, _ = engine_to_plain(engine)
    run = {k: v for k, v in state["run"].items() if k != "run"}
    # What a loop that is over has left lies about until the next one, and is not saved.
    for name, problem in state["problems"].items():
        if problem["trajectory"] is not None and not where(state, name)["loop_open"]:
            problem["trajectory"].pop("loop")
    state["snapshots"] = {
        name: snapshot
        for name, snapshot in state["snapshots"].items()
        if where(state, name)["snapshot_taken"] or where(state, name)["redo_due"]
    }
    return {**state, "run": run, "log": None}


def where(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return where a problem stands in its schedule."""
    beginning = {"loop_open": False, "snapshot_taken": False, "redo_due": False}
    found: Mapping[str, Any] = state["schedule"].get(name, beginning)
    return found


def rows(folder: Path) -> dict[str, bytes]:
    """Return the contents of all log files, by their names."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*/metrics.*"))}


def difference(a: Any, b: Any, where: str = "state") -> str:
    """Return where two states differ first, or nothing."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        return "" if same and torch.equal(a.nan_to_num(), b.nan_to_num()) else where
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            return f"{where}: {list(a)} and {list(b)}"
        if "recording" in a:
            # Steps of loops that are over lie about until new ones take their place; they are not
            # saved, since nothing reads them again.
            number = min(len(a["updates"]), len(b["updates"]))
            a, b = ({**t, "updates": t["updates"][len(t["updates"]) - number :]} for t in (a, b))
        found = (difference(a[k], b[k], f"{where}.{k}") for k in a)
        return next((text for text in found if text), "")
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        found = (
            difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))
        )
        return next((text for text in found if text), "")
    both_nan = isinstance(a, float) and math.isnan(a) and math.isnan(b)
    return "" if type(a) is type(b) and (a == b or both_nan) else f"{where}: {a!r} and {b!r}"


def assert_resumes_exactly(build: Build, folder: Path, steps: Sequence[int] = EVERYWHERE) -> None:
    """Save a program after every iteration, and resume fresh ones from some of these files."""
    saved, logs = folder / "saved", folder / "logs"
    logs.mkdir(parents=True)
    seed_all(11)
    whole = build(checkpoint_dir=saved, checkpoint_step=1, keep_last=None, log_dir=logs)
    whole.run()
    expected, records = everything(whole), rows(logs)
    for step in steps:
        place = folder / f"from {step}"
        shutil.copytree(logs, place)
        seed_all(100 + step)
        resumed = build(log_dir=place)
        resumed.run(resume=saved / f"step-{step:010d}.ckpt")
        assert not difference(expected, everything(resumed)), (
            step,
            difference(expected, everything(resumed)),
        )
        assert rows(place) == records, step
        end_workers(resumed)
    end_workers(whole)


def semi_supervised(
    method: Callable[[], ConsistencyMethod],
    buffers: Any = "copy",
    *,
    warm_up: Any = "none",
    learn: Callable[..., Engine] | None = None,
    ramp: type[RampHook] = RampHook,
    **config: Any,
) -> Build:
    """A student of a few labelled and more unlabelled samples, with a rising weight, and below an
    upper problem where ``learn`` builds one."""

    def build(**more: Any) -> Engine:
        net = network(dtype=torch.float64)
        average = EMAHook("student", 0.9, buffers=buffers, warm_up=warm_up, validate_teacher=True)
        made = method()
        student = SemiSupervisedProblem(
            "student",
            Config(type="unroll", log_step=1, **config),
            method=made,
            teacher=average if made.needs_teacher else None,
            augment=lambda x: x + 0.1 * torch.randn_like(x),
            strong_augment=lambda x: x + 0.5 * torch.randn_like(x),
            module=net,
            optimizer=torch.optim.Adam(net.parameters(), 0.01),
            train_data_loader=(
                TensorLoader(samples(6, 1, torch.float64), 3, seed=1),
                TensorLoader(samples(20, 2, torch.float64), 8, seed=2, with_indices=True),
            ),
        )
        hooks = [ramp("student", Ramp(weight=3.0, end=0.8)), average]
        settings = {"train_iters": 9, "valid_step": 3, "strategy": "cpu", "logger_type": "csv"}
        chosen = EngineConfig(**(settings | more))
        if learn is not None:
            seed_all(5)
            trusted = TensorLoader(samples(8, 3, torch.float64), 4, seed=3)
            return learn(student, trusted, chosen, hooks=hooks)
        return MeasuredStudent([student], chosen, hooks=hooks)

    return build


class MeasuredStudent(Engine):
    """Validates by the student's loss on fixed samples."""

    def validation(self) -> dict[str, float]:
        data = samples(16, 5, torch.float64)
        with torch.no_grad():
            return {"loss": float(F.cross_entropy(self.student.module(data.inputs), data.labels))}


def killed_program(kind: str, place: Path) -> Engine:
    """Return a program that runs for half a second or so and saves what it does every few steps."""
    builds = {
        "weights": two_levels(
            hooks=lambda: [EMAHook("lower", 0.9, validate_teacher=True)], data=data_loader(2, 200)
        ),
        "unrolled": two_levels(Unrolled, lower={"unroll_steps": 3, "gradient_accumulation": 2}),
        "mean teacher": semi_supervised(MeanTeacher),
    }
    seed_all(0)
    return builds[kind](
        train_iters=40, checkpoint_dir=place / "saved", checkpoint_step=7, log_dir=place / "logs"
    )
