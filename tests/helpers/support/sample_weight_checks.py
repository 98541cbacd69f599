"""What is kept of the samples that two processes share out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaweight import Config, Engine
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.weighting import MetaWeightNet, SampleWeights, WeightedClassifier, WeightLearner

from .checks import check
from .hook_checks import CLASSES, classes_of, samples
from .shared_out import Net, batches, parameters, run_config


def weighed(
    rank: int, world: int, loader: Any, *, lr: float = 0.1, **settings: Any
) -> tuple[SampleWeights, Engine]:
    torch.default_generator.manual_seed(2)
    net, weigh = Net(3, CLASSES), MetaWeightNet(4).double()
    hook = SampleWeights("low", 24)
    low = WeightedClassifier(
        "low",
        Config(gradient_accumulation=2),
        weights="top",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr),
        train_data_loader=loader,
    )
    top = WeightLearner(
        "top",
        classifier="low",
        module=weigh,
        optimizer=torch.optim.SGD(weigh.parameters(), lr),
        train_data_loader=classes_of(batches(4, 3, rank, world)),
    )
    edges = {"u2l": {top: [low]}, "l2u": {low: [top]}}
    config = run_config(world, **{"train_iters": 11, **settings})
    return hook, Engine([top, low], config, edges, hooks=[hook])


def kept(hook: SampleWeights) -> dict[str, Tensor]:
    names = ("last", "mean", "losses", "mean_losses", "predictions", "mean_predictions", "counts")
    # NaN, where nothing was recorded, is unlike itself.
    return {name: getattr(hook, name).nan_to_num(-1.0).clone() for name in names}


@check
def sample_weights_kept(rank: int, world: int, folder: Path) -> Any:
    """Epochs of six batches; the run ends inside an accumulation of the second."""
    x, y = samples(24)
    data = LabelledTensors(x, y, y.clone(), torch.arange(24), CLASSES)
    hook, engine = weighed(rank, world, TensorLoader(data, 4 // world, seed=3, with_indices=True))
    engine.run()
    return {**kept(hook), **parameters(engine)}


@check
def uneven_sample_weights_kept(rank: int, world: int, folder: Path) -> Any:
    """Five samples in one process, three in the other; nothing is trained."""
    x, y = samples(24)
    found = []
    for step in range(2):
        whole = (7 * torch.arange(8) + 3 * step) % 24
        own = whole if world == 1 else whole[:5] if rank == 0 else whole[5:]
        found.append((x[own], y[own], own))
    hook, engine = weighed(rank, world, found, lr=0.0, train_iters=2)
    engine.run()
    return kept(hook)


@check
def sample_weights_resumed(rank: int, world: int, folder: Path) -> Any:
    def made(steps: int) -> tuple[SampleWeights, Engine]:
        x, y = samples(24)
        data = LabelledTensors(x, y, y.clone(), torch.arange(24), CLASSES)
        loader = TensorLoader(data, 4 // world, seed=3, with_indices=True)
        return weighed(rank, world, loader, train_iters=steps)

    whole, engine = made(11)
    engine.run()
    _, engine = made(7)
    engine.run()
    engine.save(folder / "inside.pt")
    again, engine = made(11)
    engine.load(folder / "inside.pt")
    engine.run()
    return kept(whole), kept(again)


@check
def sample_weights_outside(rank: int, world: int, folder: Path) -> Any:
    """One process reads a sample that is not there; both say so."""
    x, y = samples(8)
    places = torch.arange(8)[rank::world] + (20 if rank == world - 1 else 0)
    weighed(rank, world, [(x[rank::world], y[rank::world], places)])[1].run()
