"""Methods without an upper problem: data, problem and hooks of a single classifier, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, Hook, ImplicitProblem, Problem
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors
from metaweight.noise import (
    CoTeachingClassifier,
    EarlyLearningClassifier,
    EarlyLearningRegularisation,
    GeneralisedCrossEntropy,
    HardBootstrappingLoss,
    NetworkPair,
    OnlineConfidentLearning,
    OnlineConfidentLearningHook,
    SoftBootstrappingLoss,
    SymmetricCrossEntropy,
    WithCriterion,
    mixup,
    mixup_loss,
)
from metaweight.weighting import (
    DeferredReweighting,
    DeferredReweightingHook,
    LDAMLoss,
    LogitAdjustedLoss,
    NormalisedLinear,
    class_balanced_weights,
    focal_loss,
    normalise_weights,
)

from .networks import NETWORKS
from .run import Run
from .searches import Search
from .settings import stream
from .training_parts import LAST_PART

Loss = Callable[[ImplicitProblem, Any], Tensor]
BatchLoss = Callable[[Tensor, Tensor], Tensor]

# Chosen from 0.2, 1, 8 and 32 on seeds 100 and 101 of the digits.
MIXUP_ALPHA = 32.0
EMA_BETA = 0.99
# Co-teaching keeps ever fewer samples for this share of the steps.
_RAMP = 0.2


class BaselineClassifier(ImplicitProblem):
    """A single level, ``min_w loss(f_w(x), y)``, without learned weights.

    Args:
        name: Its name.
        config: Its settings.
        loss: ``loss(problem, batch)``, one number for the batch.
        **problem: ``module``, ``optimizer`` and the rest of :class:`~metaweight.Problem`.
    """

    def __init__(self, name: str, config: Config, *, loss: Loss, **problem: Any) -> None:
        super().__init__(name, config, **problem)
        self._loss = loss

    def training_step(self, batch: Any) -> Tensor:
        """Return the loss of the batch."""
        return self._loss(self, batch)


@dataclass(frozen=True)
class Given:
    """What a method is made from.

    Attributes:
        run: The run.
        data: The training samples.
        search: What a search for wrong labels found, for a method that searches.
    """

    run: Run
    data: LabelledTensors
    search: Search | None


@dataclass(frozen=True)
class Fixed:
    """A classifier in the making.

    Attributes:
        make: Makes the problem from its ``name``, ``config``, ``module``, ``optimizer``,
            ``scheduler`` and ``train_data_loader``; batches are ``(inputs, labels, positions)``.
        wrap: Makes the problem's module from the network.
        hooks: Further hooks.
        data: Its training data, where not all samples.
    """

    make: Callable[..., Problem]
    wrap: Callable[[nn.Module], nn.Module] = field(default=lambda network: network)
    hooks: Sequence[Hook] = ()
    data: LabelledTensors | None = None


def by_loss(loss: Loss) -> Callable[..., Problem]:
    """Return a maker of a classifier with this loss of a batch."""
    return lambda **given: BaselineClassifier(loss=loss, **given)


def of_logits(criterion: BatchLoss) -> Callable[..., Problem]:
    """Return a maker of a classifier with a criterion of logits and labels."""
    return by_loss(lambda problem, batch: criterion(problem.module(batch[0]), batch[1]))


def fixed(given: Given) -> Fixed:
    """Return the classifier of the method."""
    return MAKERS[given.run.method.base](given)


def _plain(given: Given) -> Fixed:
    del given
    return Fixed(of_logits(F.cross_entropy))


def _class_balanced(given: Given) -> Fixed:
    """Weigh by the sizes of the labels in the data, wrong ones included."""
    of_class = class_balanced_weights(given.data.class_counts()).to(given.run.device)

    def class_balanced(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (normalise_weights(of_class[labels]) * losses).mean()

    return Fixed(of_logits(class_balanced))


def _focal(given: Given) -> Fixed:
    gamma = given.run.protocol.focal_gamma
    return Fixed(of_logits(lambda logits, labels: focal_loss(logits, labels, gamma=gamma)))


def _criterion(criterion: nn.Module, hooks: Sequence[Hook] = ()) -> Fixed:
    """Return a classifier with a criterion whose buffers belong to the state of the training."""
    return Fixed(
        of_logits(criterion), lambda network: WithCriterion(network, criterion), list(hooks)
    )


def _logit_adjusted(given: Given) -> Fixed:
    return _criterion(LogitAdjustedLoss(given.data.class_counts()))


def _deferred(given: Given) -> Fixed:
    weights = class_balanced_weights(given.data.class_counts())
    criterion = DeferredReweighting(F.cross_entropy, weights)
    return _criterion(criterion, [DeferredReweightingHook(LAST_PART)])


def _ldam(given: Given) -> Fixed:
    counts = given.data.class_counts()
    criterion = DeferredReweighting(LDAMLoss(counts), class_balanced_weights(counts))

    def wrap(network: Any) -> nn.Module:
        network.linear = NormalisedLinear(network.linear.in_features, len(counts))
        return WithCriterion(network, criterion)

    return Fixed(of_logits(criterion), wrap, [DeferredReweightingHook(LAST_PART)])


def _mixup(given: Given) -> Fixed:
    del given

    def loss(problem: ImplicitProblem, batch: Any) -> Tensor:
        mixed = mixup(batch[0], batch[1], MIXUP_ALPHA)
        return mixup_loss(problem.module(mixed.inputs), mixed.labels_a, mixed.labels_b, mixed.d)

    return Fixed(by_loss(loss))


def _early_learning(given: Given) -> Fixed:
    criterion = EarlyLearningRegularisation(len(given.data), given.data.num_classes)
    return Fixed(EarlyLearningClassifier, lambda network: WithCriterion(network, criterion))


def _average(given: Given) -> Fixed:
    del given
    hook = EMAHook("classifier", EMA_BETA, warm_up="mean_teacher", validate_teacher=True)
    return Fixed(of_logits(F.cross_entropy), hooks=[hook])


def _online_confident_learning(given: Given) -> Fixed:
    criterion = OnlineConfidentLearning(given.data.num_classes)
    return _criterion(criterion, [OnlineConfidentLearningHook()])


def _co_teaching(given: Given) -> Fixed:
    run, data = given.run, given.data
    second = NETWORKS[run.setting.network](
        data.num_classes, generator=stream(run.seed, "second network")
    )
    rate = float(data.wrong_labels.double().mean())
    steps = max(1, round(_RAMP * run.steps))

    def make(**problem: Any) -> Problem:
        return CoTeachingClassifier(noise_rate=rate, ramp_steps=steps, **problem)

    return Fixed(make, lambda network: NetworkPair(network, second))


def _without_rejected(given: Given) -> Fixed:
    assert given.search is not None
    kept = ~given.search.rejected.to(given.data.device)
    return Fixed(of_logits(F.cross_entropy), data=given.data.subset(kept))


def _by_rank(given: Given) -> Fixed:
    assert given.search is not None
    weights = given.search.weights.to(given.run.device)

    def loss(problem: ImplicitProblem, batch: Any) -> Tensor:
        losses = F.cross_entropy(problem.module(batch[0]), batch[1], reduction="none")
        return (weights[batch[2]] * losses).mean()

    return Fixed(by_loss(loss))


MAKERS: Mapping[str, Callable[[Given], Fixed]] = {
    "ce": _plain,
    "class-balanced": _class_balanced,
    "focal": _focal,
    "logit-adjusted": _logit_adjusted,
    "drw": _deferred,
    "ldam-drw": _ldam,
    "mixup": _mixup,
    "soft-bootstrapping": lambda given: Fixed(of_logits(SoftBootstrappingLoss())),
    "hard-bootstrapping": lambda given: Fixed(of_logits(HardBootstrappingLoss())),
    "gce": lambda given: Fixed(of_logits(GeneralisedCrossEntropy())),
    "sce": lambda given: Fixed(of_logits(SymmetricCrossEntropy())),
    "elr": _early_learning,
    "ema": _average,
    "ocl": _online_confident_learning,
    "co-teaching": _co_teaching,
    "prune": _without_rejected,
    "ensemble-resample": _without_rejected,
    "ensemble-reweight": _by_rank,
    "fine-tune": _plain,
}
