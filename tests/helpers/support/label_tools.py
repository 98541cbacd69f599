"""Every tool that reads labels, as a function of inputs and labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import ImplicitProblem
from metaweight.consistency import (
    ICT,
    VAT,
    FixMatch,
    MeanTeacher,
    MixMatch,
    PseudoLabel,
)
from metaweight.data import LabelledTensors
from metaweight.ensembles import OnlineEnsemble, ScoreWeightedClassifier
from metaweight.ensembles.scoring import cross_entropy_scores
from metaweight.noise import (
    BootstrappedClassifier,
    ConfidenceLearner,
    ConfidentClassifier,
    EarlyLearningRegularisation,
    GeneralisedCrossEntropy,
    HardBootstrappingLoss,
    LearnedConfidence,
    LearnedTrust,
    MixupClassifier,
    OnlineConfidentLearning,
    SoftBootstrappingLoss,
    SymmetricCrossEntropy,
    WithCriterion,
    co_teaching_loss,
    confident_learning,
    inject_label_noise,
    mixup,
    mixup_accuracy,
    mixup_loss,
)
from metaweight.noise.confident_joint import confident_joint, confident_thresholds, contradicted
from metaweight.weighting import (
    ClassAwareWeightNet,
    DeferredReweighting,
    LDAMLoss,
    LogitAdjustedLoss,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    focal_loss,
)

from .labelled_batch import KEPT, SHARES, B, C, D, PerSample, X, Y, per_sample
from .semi_supervised import network, noisy, run, student, unlabelled_batch
from .zoo import over


class Zero(nn.Module):
    """Mixes nothing, as the output of an upper problem."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.s * 0


def parts(module: nn.Module) -> dict[str, Any]:
    settings = {"lr": 0.1}
    batch = (X, Y, torch.arange(B))
    optimizer = torch.optim.SGD(module.parameters(), **settings)
    return {"module": module, "optimizer": optimizer, "train_data_loader": [batch]}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().double()


class Upper(ImplicitProblem):
    """Calls its module; its own loss is not looked at."""

    def training_step(self, batch: Any) -> Tensor:
        del batch
        return sum((p**2).sum() for p in self.module.parameters())  # type: ignore[return-value]


def lower_loss(
    make: Callable[..., Any], upper: nn.Module, x: Tensor, y: Any, *, net: Any = None
) -> Tensor:
    """The loss of a lower problem on a batch."""
    module = network(batch_norm=False) if net is None else net
    lower = make("lower", **parts(module))
    over(Upper("upper", **parts(upper)), lower, train_iters=1)
    torch.default_generator.manual_seed(0)
    places = torch.arange(B) if len(x) == B else KEPT
    loss: Tensor = lower.training_step((x, y, places))
    return loss


def upper_loss(make: Callable[..., Any], upper: nn.Module, x: Tensor, y: Any) -> Tensor:
    """The loss of an upper problem on a batch."""

    class Lower(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.module(batch[0]), batch[1])

    learner = make("upper", classifier="lower", **parts(upper))
    over(learner, Lower("lower", **parts(network(batch_norm=False))), train_iters=1)
    loss: Tensor = learner.training_step((x, y))
    return loss


def weighted(x: Tensor, y: Any, net: Any = MetaWeightNet, **settings: Any) -> Tensor:
    make = partial(WeightedClassifier, weights="upper", **settings)
    return lower_loss(make, seeded(net), x, y)


def score_weighted(x: Tensor, y: Any) -> Tensor:
    scores = torch.linspace(0, 2, B, dtype=torch.float64)
    make = partial(ScoreWeightedClassifier, weights="upper", scores=scores)
    return lower_loss(make, seeded(MetaWeightNet), x, y)


def learner(x: Tensor, y: Any, **settings: Any) -> Tensor:
    return upper_loss(partial(WeightLearner, **settings), seeded(MetaWeightNet), x, y)


def confident(x: Tensor, y: Any) -> Tensor:
    net = WithCriterion(network(batch_norm=False), OnlineConfidentLearning(C, dtype=torch.float64))
    make = partial(ConfidentClassifier, confidence="upper")
    return lower_loss(make, seeded(partial(LearnedConfidence, C)), x, y, net=net)


def semi_supervised(x: Tensor, y: Any, method: Any, **settings: Any) -> Tensor:
    """The labelled term of a student without a random view."""
    settings = {"strong_augment": noisy} | settings
    net = network(batch_norm=False)
    problem = student(
        method, net=net, loader=([(x, y)], [unlabelled_batch()]), augment=None, lr=0.0, **settings
    )
    run(problem, 1)
    torch.default_generator.manual_seed(0)
    labelled: Tensor = problem.training_step(problem.cur_batch)["labelled"]
    return labelled


def collecting(x: Tensor, y: Any, **settings: Any) -> Tensor:
    """What online confident learning returns and collects."""
    criterion = OnlineConfidentLearning(C, dtype=torch.float64, **settings)
    loss = criterion(x @ X[:C].T, y)
    return torch.cat([loss.reshape(1), criterion.sums.flatten(), criterion.counts])


def early_learning(x: Tensor, y: Any) -> Tensor:
    """The loss of the second of two steps, and the targets."""
    criterion, places = EarlyLearningRegularisation(B, C, dtype=torch.float64), torch.arange(len(x))
    criterion(x[:, :C], y, places)
    loss = criterion(x @ X[:C].T, y, places)
    return torch.cat([loss.reshape(1), criterion.targets.sum(0)])


def reweighted(criterion: Any, **settings: Any) -> DeferredReweighting:
    """Class weights that are in use."""
    made = DeferredReweighting(criterion, [3.0, 1.0, 0.5], **settings)
    made.switch()
    return made


def of_logits(tool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A tool of logits, as one of inputs."""
    return lambda x, y: tool(x @ X[:C].T, y)


def mixed(z: Tensor, y: Any, **settings: Any) -> Tensor:
    """mixup's loss of pairs in which both or none have a label."""
    d = SHARES[: len(z)] if settings.pop("per_sample", False) else D
    return mixup_loss(z, y, y, d, **settings)


def unmixed(x: Tensor, y: Any) -> Tensor:
    batch = mixup(x, y, 0.0)
    return mixup_loss(batch.inputs @ X[:C].T, *batch[1:])


# The value of each on a batch is a mean, a count or a sum over the samples with a label.
MEANS: dict[str, Callable[[Tensor, Any], Any]] = {
    "focal_loss": of_logits(focal_loss),
    "focal_loss, gamma=0": of_logits(partial(focal_loss, gamma=0.0)),
    "focal_loss, sum": of_logits(partial(focal_loss, reduction="sum")),
    "soft bootstrapping": of_logits(SoftBootstrappingLoss()),
    "hard bootstrapping": of_logits(HardBootstrappingLoss()),
    "generalised cross-entropy": of_logits(GeneralisedCrossEntropy()),
    "symmetric cross-entropy": of_logits(SymmetricCrossEntropy()),
    "logit adjustment": of_logits(LogitAdjustedLoss([5, 3, 1])),
    "margins": of_logits(LDAMLoss([5, 3, 1])),
    "deferred weights": of_logits(reweighted(F.cross_entropy)),
    "deferred weights, margins, sum": of_logits(reweighted(LDAMLoss([5, 3, 1]), reduction="sum")),
    "early learning": early_learning,
    "co-teaching": of_logits(lambda z, y: co_teaching_loss(z, z.roll(1, 1), y, 1.0)),
    "online confident learning": collecting,
    "online confident learning, agree": partial(collecting, by="agree"),
    "online confident learning, ema": partial(collecting, thresholds="ema", by="label"),
    "mixup_loss": of_logits(mixed),
    "mixup_loss, per sample": of_logits(partial(mixed, criterion=per_sample)),
    "mixup_loss, sum": of_logits(partial(mixed, reduction="sum")),
    "mixup_loss, module": of_logits(partial(mixed, criterion=nn.CrossEntropyLoss())),
    "mixup_accuracy": of_logits(lambda z, y: mixup_accuracy(z, y, y, D)),
    "mixup": unmixed,
    "confident_joint": of_logits(lambda z, y: confident_joint(z.softmax(1), y)),
    "confident_thresholds": of_logits(lambda z, y: confident_thresholds(z.softmax(1), y)),
    "contradicted": of_logits(lambda z, y: contradicted(z.softmax(1), y).sum()),
    "confident_learning": of_logits(lambda z, y: confident_learning(y, logits=z).joint),
    "WeightedClassifier": weighted,
    "WeightedClassifier, normalise": partial(weighted, normalise=True),
    "WeightedClassifier, module": partial(weighted, loss=nn.CrossEntropyLoss()),
    "WeightedClassifier, function": partial(weighted, loss=per_sample),
    "WeightedClassifier, module of one's own": partial(weighted, loss=PerSample()),
    "WeightedClassifier, ignore_index=-1": partial(
        weighted, loss=nn.CrossEntropyLoss(ignore_index=-1, reduction="none")
    ),
    "WeightedClassifier, focal": partial(weighted, loss=focal_loss),
    "WeightedClassifier, bootstrapping": partial(weighted, loss=SoftBootstrappingLoss()),
    "WeightedClassifier, by class": partial(
        weighted, net=partial(ClassAwareWeightNet, torch.arange(C))
    ),
    "ScoreWeightedClassifier": score_weighted,
    "WeightLearner": learner,
    "WeightLearner, module": partial(learner, loss=nn.CrossEntropyLoss(ignore_index=-1)),
    "WeightLearner, unreduced": partial(learner, loss=nn.CrossEntropyLoss(reduction="none")),
    "WeightLearner, function": partial(learner, loss=per_sample),
    "WeightLearner, class weights": partial(
        learner, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    ),
    "WeightLearner, focal": partial(learner, loss=focal_loss),
    "BootstrappedClassifier": lambda x, y: lower_loss(
        partial(BootstrappedClassifier, beta="upper"), seeded(LearnedTrust), x, y
    ),
    "MixupClassifier": lambda x, y: lower_loss(
        partial(MixupClassifier, alpha="upper"), Zero(), x, y
    ),
    "ConfidentClassifier": confident,
    "ConfidenceLearner": lambda x, y: upper_loss(
        ConfidenceLearner, seeded(partial(LearnedConfidence, C)), x, y
    ),
    "FixMatch": partial(semi_supervised, method=FixMatch()),
    "ICT": partial(semi_supervised, method=ICT()),
    "MeanTeacher": partial(semi_supervised, method=MeanTeacher(divergence="kl")),
    "MixMatch": partial(semi_supervised, method=MixMatch(alpha=0.0)),
    "PseudoLabel": partial(semi_supervised, method=PseudoLabel()),
    "VAT": partial(semi_supervised, method=VAT()),
}


# Tools that need the label of every sample.
WHOLE: dict[str, Callable[[Tensor, Any], Any]] = {
    "ClassAwareWeightNet": lambda x, y: seeded(partial(ClassAwareWeightNet, torch.arange(C)))(
        x[:, 0], y
    ),
    "cross_entropy_scores": of_logits(cross_entropy_scores),
    "OnlineEnsemble": lambda x, y: OnlineEnsemble([network()]).score([(x, y)]),
    "inject_label_noise": lambda x, y: (
        inject_label_noise(y, 0.5, generator=torch.Generator().manual_seed(0)).noisy
    ),
    "LabelledTensors": lambda x, y: LabelledTensors(x, y).labels,
    "LabelledTensors.with_labels": lambda x, y: LabelledTensors(x, Y).with_labels(y).labels,
    "clean labels": lambda x, y: LabelledTensors(x, Y, y).clean_labels,
}


OWN = ("function", "own", "per sample")
