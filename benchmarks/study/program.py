"""The graph of each method: a classifier with fixed weights, or one whose weights are learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, Hook, Problem
from metaweight.data import LabelledTensors
from metaweight.weighting import (
    ClassAwareWeightNet,
    LogitAdjustedLoss,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    class_size_groups,
)

from .averaged import AveragedClassifier, WithAverages
from .early import EarlyLearner, WithTargets
from .fixed import Given, fixed, of_logits
from .methods import ECONOMIES, SEARCHES
from .run import Run
from .searches import Search, search
from .settings import Splits, stream
from .training_parts import (
    LAST_PART,
    OfPixels,
    TwoPhaseLoader,
    is_images,
    loader,
    meta_optimizer,
    meta_schedule,
    trained,
)

WARM_UP = 0.2


@dataclass(frozen=True)
class Program:
    """The problems of a method and how they depend on each other.

    Attributes:
        problems: The problems.
        dependencies: Their dependencies.
        data: The training samples, clean ones included where the method trains on them.
        groups: For learned weights the group of each class, (C,); ``None`` for fixed ones.
        hooks: Hooks of the method.
        search: What a search for wrong labels in ``data`` found.
    """

    problems: list[Problem]
    dependencies: dict[str, dict[Problem, list[Problem]]]
    data: LabelledTensors
    groups: Tensor | None = None
    hooks: Sequence[Hook] = ()
    search: Search | None = None


def build(run: Run, splits: Splits, folder: Path) -> Program:
    """Return the problems of ``run``: the classifier, and above it the learner of its weights.

    Args:
        run: The run.
        splits: Its data.
        folder: Where the result of a search for wrong labels is kept.
    """
    data = splits.train.concat(splits.meta) if run.method.with_meta else splits.train
    if not run.method.learned:
        return _single_level(run, splits, data, folder)
    economy = ECONOMIES.get(run.method.economy)
    wrap: Callable[[nn.Module], nn.Module] = _plain
    kind = WeightedClassifier
    if "averaged" in run.method.extras:
        wrap, kind = partial(WithAverages, samples=len(data)), AveragedClassifier
    if "early" in run.method.extras:
        wrap = partial(WithTargets, samples=len(data), classes=data.num_classes)
        kind = EarlyLearner
    shared = trained("classifier", run, data, stream(run.seed, "network"), wrap)
    changes = {} if economy is None else dict(economy.config)
    if "warm-up" in run.method.extras:
        changes["warmup_steps"] = round(WARM_UP * run.steps)
    shared["config"] = replace(shared["config"], **changes)
    if "balanced" in run.method.extras:
        shared["loss"] = LogitAdjustedLoss(data.class_counts(), reduction="none")
    classifier = kind(
        weights="reweight",
        normalise=run.protocol.normalise or run.method.base != "meta-weight-net",
        **shared,
    )
    groups = class_groups(run, data)
    learner = _weight_learner(run, splits, groups)
    return Program(
        [learner, classifier],
        {"u2l": {learner: [classifier]}, "l2u": {classifier: [learner]}},
        data,
        groups,
        [] if economy is None else economy.hooks(learner.name),
    )


def _plain(network: nn.Module) -> nn.Module:
    return network


def _single_level(run: Run, splits: Splits, data: LabelledTensors, folder: Path) -> Program:
    make = of_logits(F.cross_entropy)

    def make_judge(name: str, part: LabelledTensors, number: int) -> Problem:
        network = stream(run.seed, f"judge {number}")
        given = trained(name, run, part, network, wrap=_judging(data))
        # The engine of a search may be one that does not know the run's precision.
        return make(**{**given, "config": Config(precision=run.precision)})

    # Some layers and losses draw from the global stream where they are made or mixed.
    torch.manual_seed(stream(run.seed, "remedy").initial_seed())
    found = None
    if run.method.base in SEARCHES:
        found = search(run, data, make_judge, folder / "search.pt")
        torch.manual_seed(stream(run.seed, "after the search").initial_seed())
    chosen = fixed(Given(run, data, found))
    part = data if chosen.data is None else chosen.data
    given = trained("classifier", run, part, stream(run.seed, "network"), wrap=chosen.wrap)
    if run.method.base == "fine-tune":
        given["train_data_loader"] = TwoPhaseLoader(
            given["train_data_loader"],
            round(LAST_PART * run.steps),
            loader(splits.meta, run, "meta"),
        )
    return Program([chosen.make(**given)], {}, data, None, chosen.hooks, found)


def _judging(data: LabelledTensors) -> Callable[[nn.Module], nn.Module]:
    return OfPixels if is_images(data) else nn.Sequential


def class_groups(run: Run, data: LabelledTensors) -> Tensor:
    """Return the group of each class, (C,): all one group for a network that sees the loss only."""
    if run.method.base != "class-aware":
        return torch.zeros(data.num_classes, dtype=torch.int64)
    if run.protocol.class_groups is None:
        return torch.arange(data.num_classes)
    return class_size_groups(data.class_counts(), run.protocol.class_groups)


def _weight_learner(run: Run, splits: Splits, groups: Tensor) -> WeightLearner:
    # Layers without a generator argument draw from the global stream.
    torch.manual_seed(stream(run.seed, "weight network").initial_seed())
    aware = run.method.base == "class-aware"
    output = "exponential" if "exponential" in run.method.extras else "sigmoid"
    network = ClassAwareWeightNet(groups, output=output) if aware else MetaWeightNet(output=output)
    optimizer = meta_optimizer(network, run)
    augmented = "plain-views" not in run.method.extras
    return WeightLearner(
        "reweight",
        classifier="classifier",
        module=network,
        optimizer=optimizer,
        scheduler=meta_schedule(optimizer, run),
        train_data_loader=loader(splits.meta, run, "meta", augmented),
    )
