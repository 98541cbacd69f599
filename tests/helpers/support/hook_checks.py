"""What hooks find in each of two processes that share out batches."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metaweight import (
    Config,
    Engine,
    HypergradientCheck,
    ImplicitProblem,
    NormLogger,
    Unroll,
    WeightCollapse,
)
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.ensembles import EnsembleHook, OnlineEnsemble
from metaweight.noise import (
    ConfidenceLearner,
    ConfidentClassifier,
    LearnedConfidence,
    OnlineConfidentLearning,
    OnlineConfidentLearningHook,
    WithCriterion,
)

from . import zoo
from .checks import check
from .shared_out import Net, batches, parameters, program, run_config

CLASSES = 4
COLLECTED: dict[str, dict[str, Any]] = {
    "pred": {"type": "darts"},
    "running thresholds": {"by": "label", "thresholds": "ema", "type": "darts"},
    "agree": {"by": "agree", "drop_hard": True, "type": Unroll()},
    "forward mode": {"type": Unroll(product="forward_over_reverse")},
}


def classes_of(found: list[Any]) -> list[Any]:
    """Batches of numbers as batches of classes, by rounding."""
    return [(x, (y.abs() * 1.5).long().clamp(max=CLASSES - 1)) for x, y in found]


def confident(rank: int, world: int, *, type: Any = "darts", **settings: Any) -> Engine:
    torch.default_generator.manual_seed(1)
    run = {name: settings.pop(name) for name in ("train_iters",) if name in settings}
    criterion = OnlineConfidentLearning(CLASSES, dtype=torch.float64, **settings)
    net, top = WithCriterion(Net(3, CLASSES), criterion), LearnedConfidence(CLASSES).double()
    data = classes_of(batches(3, 5, rank, world))
    lower = ConfidentClassifier(
        "low",
        Config(type=type, gradient_accumulation=2),
        confidence="top",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.5),
        train_data_loader=data,
    )
    upper = ConfidenceLearner(
        "top",
        classifier="low",
        module=top,
        optimizer=torch.optim.Adam(top.parameters(), 0.05),
        train_data_loader=classes_of(batches(4, 3, rank, world)),
    )
    edges = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    config = run_config(world, **{"train_iters": 14, **run})
    return Engine([upper, lower], config, edges, hooks=[OnlineConfidentLearningHook()])


def gathered(engine: Engine) -> dict[str, Tensor]:
    """Parameters and all that the criterion holds."""
    held = dict(engine.low.module.criterion.named_buffers())
    return {**parameters(engine), **{name: t.clone() for name, t in held.items()}}


@check
def collected(rank: int, world: int, folder: Path) -> Any:
    """Epochs of five batches; the 14 steps end inside the third."""
    found = {}
    for case, settings in COLLECTED.items():
        engine = confident(rank, world, **settings)
        engine.run()
        found[case] = gathered(engine)
    return found


@check
def collected_resumed(rank: int, world: int, folder: Path) -> Any:
    """Saved inside an epoch and an accumulation."""
    whole = confident(rank, world, thresholds="ema")
    whole.run()
    first = confident(rank, world, thresholds="ema", train_iters=7)
    first.run()
    first.save(folder / "inside.pt")
    again = confident(rank, world, thresholds="ema")
    again.load(folder / "inside.pt")
    again.run()
    return gathered(whole), gathered(again)


class Written:
    """Keeps what an engine logs."""

    def __init__(self, engine: Engine) -> None:
        self.rows: list[tuple[str, int, dict[str, Tensor]]] = []
        engine.logger.log = self._log  # type: ignore[method-assign]

    def _log(self, stats: Any, tag: Any = None, step: Any = None) -> None:
        row = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in stats.items()}
        self.rows.append((str(tag), int(step), row))

    def table(self) -> dict[str, Tensor]:
        return {f"{t} {n} {k}": v for t, n, row in self.rows for k, v in row.items()}


@check
def weights_watched(rank: int, world: int, folder: Path) -> Any:
    hook = WeightCollapse("low", every=2, equal=10.0)
    engine = program("reweighting", rank, world, hooks=[hook])
    written = Written(engine)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine.run()
    return {"table": written.table(), "said": [str(w.message) for w in said]}


@check
def uneven_weights_watched(rank: int, world: int, folder: Path) -> Any:
    """Five samples in one process, three in the other; nothing is trained."""
    engine = program("reweighting", rank, world, hooks=[WeightCollapse("low", every=1)])
    written = Written(engine)
    whole = batches(3, 1, 0, 1)[0]
    own = slice(None) if world == 1 else slice(5) if rank == 0 else slice(5, None)
    engine.low.train_data_loader[0][:] = [tuple(part[own] for part in whole)]
    for problem in engine.problems:
        problem.optimizer.param_groups[0]["lr"] = 0.0
    engine.run()
    return written.table()


@check
def norms_logged(rank: int, world: int, folder: Path) -> Any:
    engine = program("darts", rank, world, accumulation=2, hooks=[NormLogger(2)])
    written = Written(engine)
    engine.run()
    return written.table()


@check
def norms_resumed(rank: int, world: int, folder: Path) -> Any:
    """What is logged after a restart inside an accumulation of the upper problem."""

    def made(iterations: int) -> tuple[Engine, Written]:
        settings = {"accumulation": 2, "hooks": [NormLogger(1)], "train_iters": iterations}
        engine = program("darts", rank, world, **settings)
        return engine, Written(engine)

    first, before = made(5)
    first.run()
    first.save(folder / "inside.pt")
    again, after = made(12)
    again.load(folder / "inside.pt")
    again.run()
    whole, rows = made(12)
    whole.run()
    return {**before.table(), **after.table()}, rows.table()


@check
def hypergradients_checked(rank: int, world: int, folder: Path) -> Any:
    """Numbers of reports, whose methods differ from what they are compared with."""
    found = {}
    for kind in ("darts", "reweighting", "cg"):
        hook = HypergradientCheck(every=2)
        engine = program(kind, rank, world, hooks=[hook])
        engine.run()
        for number, report in enumerate(hook.reports):
            assert report.unrolled is not None
            seen = [report.unrolled.cosine, report.unrolled.norm_ratio]
            found[f"{kind} {number}"] = torch.tensor(seen, dtype=torch.float64)
    return found


class Weighed(zoo.Weighed):
    """Weighs samples as an ensemble says."""

    hook: EnsembleHook

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        assert self.hook.weights is not None
        return self.hook.weights[batch[2]]


def samples(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(number, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (number,), generator=generator)


def members() -> OnlineEnsemble:
    torch.default_generator.manual_seed(11)
    return OnlineEnsemble([Net(3, CLASSES) for _ in range(2)])


def scored(cls: type[Any], loader: Any, world: int, hook: EnsembleHook) -> Engine:
    torch.default_generator.manual_seed(2)
    net = Net(3, CLASSES)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    problem = cls("fit", Config(), net, optimizer, train_data_loader=loader)
    problem.hook = hook
    return Engine([problem], run_config(world, train_iters=20), hooks=[hook])


@check
def ensembled(rank: int, world: int, folder: Path) -> Any:
    x, y = samples(24)
    data = LabelledTensors(x, y, y.clone(), torch.arange(24), CLASSES)
    size = 4 // world
    found = {}
    loaders: dict[str, tuple[Any, Any, Any]] = {
        "resample": (zoo.Classifier, "resample", TensorLoader(data, size, seed=3)),
        "in order": (zoo.Classifier, "resample", DataLoader(TensorDataset(x, y), size)),
        "reweight": (Weighed, "reweight", TensorLoader(data, size, seed=3, with_indices=True)),
    }
    for name, (cls, action, loader) in loaders.items():
        hook = EnsembleHook(members(), "fit", action=action, low=0.25, high=0.75)
        engine = scored(cls, loader, world, hook)
        engine.run()
        seen = {"scores": hook.scores, "weights": hook.weights, "kept": hook.kept}
        found[name] = {**parameters(engine), **{k: v for k, v in seen.items() if v is not None}}
    return found


@check
def scored_apart(rank: int, world: int, folder: Path) -> Any:
    """A metric that is not the same in all processes."""

    def metric(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="none") * (-1.0) ** rank

    x, y = samples(24)
    data = LabelledTensors(x, y, y.clone(), torch.arange(24), CLASSES)
    hook = EnsembleHook(members(), "fit", low=0.0, high=0.5, metric=metric)
    engine = scored(zoo.Classifier, TensorLoader(data, 4 // world, seed=3), world, hook)
    engine.run()
    return {**parameters(engine), "kept": hook.kept}


@check
def scored_shares(rank: int, world: int, folder: Path) -> Any:
    x, y = samples(12 + 2 * rank)
    loader = [(x, y)]
    hook = EnsembleHook(members(), "fit", data=loader, make_loader=lambda kept: loader)
    scored(zoo.Classifier, loader, world, hook).run()


class Normed(nn.Module):
    """Batch norm of the inputs, whose mean does not depend on what is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(3).double(), Net(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))


class Taught(ImplicitProblem):
    """Follows its teacher, which sees the batch as well."""

    hook: EMAHook

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        taught = self.hook.teacher()(x).detach()
        return ((self.module(x) - taught) ** 2).mean() + ((self.module(x)[:, 0] - y) ** 2).mean()


@check
def own_teachers(rank: int, world: int, folder: Path) -> Any:
    torch.default_generator.manual_seed(4)
    net, hook = Normed(), EMAHook("fit", 0.9, buffers="own")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    data = batches(3, 5, rank, world)
    fit = Taught("fit", Config(), net, optimizer, train_data_loader=data)
    fit.hook = hook
    Engine([fit], run_config(world, train_iters=6), hooks=[hook]).run()
    norm = hook.teacher().norm
    return {"mean": norm.running_mean, "variance": norm.running_var}


@check
def logs_not_written(rank: int, world: int, folder: Path) -> Any:
    """The first process cannot bring its logs to the disk; nobody is left waiting."""

    def full() -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = program("darts", rank, world, checkpoint_dir=folder / "saved", checkpoint_step=2)
    if rank == 0:
        engine.logger.position = full  # type: ignore[method-assign]
    engine.run()
    return {"steps": torch.tensor(engine.global_step), **parameters(engine)}
