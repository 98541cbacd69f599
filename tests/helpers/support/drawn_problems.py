"""Engines made of drawn programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from metaweight.engines import AdaptiveInterval, Hook, NormLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    IterativeProblem,
    ReweightedProblem,
)
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors, TensorLoader
from support.random_programs import Data, Level, Network, Program
from support.resuming import CLASSES, Jitter

FEATURES, IMAGE = 5, (2, 4, 4)


class Coupled(ImplicitProblem):
    """Cross-entropy of the problem's own predictions and those of the problems below it.

    From above, networks of weights weigh the samples, and classifiers are imitated.
    """

    def training_step(self, batch: Any) -> Any:
        return _plain_loss(self, batch)


class CoupledIterative(IterativeProblem):
    def training_step(self, batch: Any) -> Any:
        return _plain_loss(self, batch)


class Weighted(ReweightedProblem):
    """Weights are given the losses, less a function of the predictions."""

    def sample_losses(self, batch: Any) -> tuple[Tensor, Any]:
        predictions = _predictions(self, batch)
        losses = F.cross_entropy(predictions, _flat(batch)[1], reduction="none")
        return losses, {"largest": predictions.amax(1)}

    def sample_weights(self, losses: Tensor, batch: Any, features: Any) -> Tensor:
        (name,) = self.cfg["weighers"]
        given = losses - features["largest"].tanh()
        # Sample losses of 16 bits come in single precision.
        weights: Tensor = getattr(self, name)(given.unsqueeze(1).to(self.cfg["dtype"]))
        return weights


class Decisions(ImplicitProblem):
    """Keeps each sample with the probability that the networks of weights say."""

    def training_step(self, batch: Any) -> Any:
        losses = _sample_losses(self, batch)
        chance = _weights(self, losses.detach()).clamp(0.05, 0.95)
        keep = torch.distributions.Bernoulli(chance, validate_args=False)
        kept = keep.sample()
        loss = (kept * losses).mean() + 0.1 * _imitation(self, batch)
        return {"loss": loss, "log_prob": keep.log_prob(kept)}


KINDS: dict[str, Any] = {
    "plain": Coupled,
    "iterative": CoupledIterative,
    "weighted": Weighted,
    "decisions": Decisions,
}


def _plain_loss(problem: Any, batch: Any) -> dict[str, Tensor]:
    losses = _sample_losses(problem, batch)
    weights = _weights(problem, losses.detach())
    loss = (weights * losses).mean() + 0.1 * _imitation(problem, batch)
    return {"loss": loss, "largest": losses.max()}


def _sample_losses(problem: Any, batch: Any) -> Tensor:
    return F.cross_entropy(_predictions(problem, batch), _flat(batch)[1], reduction="none")


def _predictions(problem: Any, batch: Any) -> Tensor:
    inputs, _ = _flat(batch)
    predictions = [getattr(problem, name)(inputs) for name in problem.cfg["below"]]
    if not problem.cfg["weigher"]:
        predictions.append(problem.module(inputs))
    total: Any = sum(predictions)
    return total


def _weights(problem: Any, losses: Tensor) -> Tensor:
    weights = torch.ones_like(losses)
    for name in problem.cfg["weighers"]:
        weights = weights * getattr(problem, name)(losses.unsqueeze(1)).squeeze(1)
    return weights


def _imitation(problem: Any, batch: Any) -> Tensor:
    """Mean squared distance from the predictions of the classifiers above."""
    inputs, _ = _flat(batch)
    distance = torch.zeros((), dtype=inputs.dtype)
    if problem.cfg["teachers"]:
        own = problem.module(inputs)
        for name in problem.cfg["teachers"]:
            distance = distance + (own - getattr(problem, name)(inputs)).square().mean()
    return distance


def _flat(batch: Any) -> tuple[Tensor, Tensor]:
    """Inputs and labels of one loader, or of two together."""
    if isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    return torch.cat([b[0] for b in batch]), torch.cat([b[1] for b in batch])


class Flattened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class AlwaysEval(nn.BatchNorm1d):
    """A batch norm that keeps its statistics."""

    def train(self, mode: bool = True) -> AlwaysEval:
        del mode
        super().train(False)
        return self


def network(settings: Network, *, images: bool, seed: int, dtype: torch.dtype) -> nn.Module:
    """Return a small network, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential()
        if settings.weigher:
            net.append(nn.Linear(1, 4)).append(nn.Tanh())
        elif images:
            net.append(nn.Conv2d(IMAGE[0], 4, 3, padding=1))
            if settings.norm == "batch":
                net.append(nn.BatchNorm2d(4))
            net.append(nn.Tanh()).append(Flattened())
        else:
            net.append(nn.Linear(FEATURES, 4))
            if settings.norm == "batch":
                net.append(nn.BatchNorm1d(4))
            net.append(nn.Tanh())
        if settings.norm == "layer":
            net.append(nn.LayerNorm(4))
        if settings.norm == "eval batch":
            net.append(AlwaysEval(4))
        if settings.dropout:
            net.append(nn.Dropout(settings.dropout))
        net.add_module("head", nn.Linear(4, 1 if settings.weigher else CLASSES))
        if settings.weigher:
            net.append(nn.Sigmoid())
    if settings.frozen:
        next(net.parameters()).requires_grad_(False)
    return net.to(dtype)


def labelled(number: int, *, images: bool, seed: int, dtype: torch.dtype) -> LabelledTensors:
    generator = torch.Generator().manual_seed(seed)
    shape = IMAGE if images else (FEATURES,)
    x = torch.randn(number, *shape, generator=generator).to(dtype)
    y = torch.randint(CLASSES, (number,), generator=generator)
    return LabelledTensors(x, y, y.clone(), torch.arange(number), CLASSES)


class Jittered:
    """Batches of another loader, with noise from the global random streams."""

    def __init__(self, loader: Any, dtype: torch.dtype) -> None:
        self.loader = loader
        self.dtype = dtype
        self.jitter = Jitter()

    def __iter__(self) -> Iterator[Any]:
        for inputs, labels in self.loader:
            yield self.jitter(inputs).to(self.dtype), labels

    def __len__(self) -> int:
        return len(self.loader)


def loader(data: Data, *, images: bool, seed: int, dtype: torch.dtype) -> Any:
    """Return a loader, or a tuple of two."""
    if data.kind == "two loaders":
        halves = (Data("shuffled", data.number, data.batch), Data("tensors", 7, 3, data.jitter))
        return tuple(
            loader(half, images=images, seed=seed + i, dtype=dtype) for i, half in enumerate(halves)
        )
    samples = labelled(data.number, images=images, seed=seed, dtype=dtype)
    if data.kind == "tensors":
        jitter = Jitter()
        transform = (lambda x: jitter(x).to(dtype)) if data.jitter else None
        return TensorLoader(samples, data.batch, seed=seed, transform=transform)
    pairs = TensorDataset(samples.inputs, samples.labels)
    if data.kind == "list":
        return [tuple(batch) for batch in DataLoader(pairs, data.batch)]
    generator = torch.Generator().manual_seed(seed) if data.kind == "generator" else None
    made = DataLoader(pairs, data.batch, shuffle=True, generator=generator)
    return Jittered(made, dtype) if data.jitter and data.kind == "shuffled" else made


def scheduler(kind: str, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    schedulers = torch.optim.lr_scheduler
    if kind == "step":
        return schedulers.StepLR(optimizer, 3, 0.7)
    if kind == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, 10, 1e-4)
    if kind == "one cycle":
        rate = optimizer.param_groups[0]["lr"]
        cycles = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
        # Roll-backs take further steps.
        return schedulers.OneCycleLR(
            optimizer, rate, total_steps=4 * steps + 4, cycle_momentum=cycles
        )
    if kind == "plateau":
        return schedulers.ReduceLROnPlateau(optimizer, patience=1, factor=0.8)
    if kind == "chained":
        parts = [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.9)]
        return schedulers.SequentialLR(optimizer, parts, [2])
    return None


class Measured(Engine):
    """Validates by the loss of the first problem on fixed samples."""

    def validation(self) -> dict[str, float]:
        first = self.problems[0]
        images, dtype = first.cfg["images"], first.cfg["dtype"]
        data = labelled(6, images=images, seed=99, dtype=dtype)
        with torch.no_grad():
            return {"loss": float(F.cross_entropy(first.module(data.inputs), data.labels))}


HOOKS: dict[str, Any] = {"ema": EMAHook, "norms": NormLogger, "interval": AdaptiveInterval}


def build(program: Program, *, hooks: tuple[Hook, ...] = (), **more: Any) -> Engine:
    """Return an engine of a program; ``more`` are settings of its engine."""
    problems = {
        level.name: _problem(program, level, 100 * program.seed + number)
        for number, level in enumerate(program.levels)
    }
    edges = {
        "u2l": {problems[u.name]: [problems[n] for n in u.enters] for u in program.levels},
        "l2u": {problems[u.name]: [problems[n] for n in u.above] for u in program.levels},
    }
    settings = {"train_iters": program.steps, "strategy": "cpu", **program.engine, **more}
    drawn = [HOOKS[kind](**chosen) for kind, chosen in program.hooks]
    kind = Measured if program.validates else Engine
    return kind(list(problems.values()), EngineConfig(**settings), edges, hooks=[*drawn, *hooks])


def _problem(program: Program, level: Level, seed: int) -> Any:
    form = {"images": program.images, "dtype": program.dtype}
    module = network(level.network, images=program.images, seed=seed, dtype=program.dtype)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, level.optimizer)(trained, **level.settings)
    entering = program.entering(level.name)
    told = {
        "weigher": level.network.weigher,
        "weighers": [up.name for up in entering if up.network.weigher],
        "teachers": [up.name for up in entering if not up.network.weigher],
        "below": [low.name for low in program.below(level.name)],
        **form,
    }
    return KINDS[level.kind](
        level.name,
        Config(**level.config),
        module,
        optimizer,
        scheduler(level.scheduler, optimizer, program.steps),
        loader(level.data, images=program.images, seed=seed, dtype=program.dtype),
        told,
    )
